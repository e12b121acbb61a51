"""Nodes on which processes fail: what failed there is tried elsewhere, and in the end they are left out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from latentsync_ray.engine.notices import Notices

MAX_FAILURES_IN_A_ROW = 3
"""After this many processes in a row that have failed on a node, no group is started there any more."""


class Nodes:
    """Counts failures by node. One success shows that a node is sound.

    Args:
        candidates: Gives the ids of the nodes that could hold a worker.
        notices: For the user.
    """

    def __init__(self, candidates: Callable[[], set[str]], notices: Notices):
        self._candidates, self._notices = candidates, notices
        self._failures: defaultdict[str, int] = defaultdict(int)
        self._suspected: set[str] = set()
        """Where something has failed that is to be tried elsewhere next."""
        self._left_out: set[str] = set()

    def failed(self, node: str, error: str) -> bool:
        """A process has failed for a reason that may be its node's. Returns whether there is another node to try."""
        self._failures[node] += 1
        self._suspected.add(node)
        others = self._candidates() - self._left_out - {node}
        if others and self._failures[node] >= MAX_FAILURES_IN_A_ROW and node not in self._left_out:
            self._left_out.add(node)
            self._notices.add(
                f"node {node[:12]}: {MAX_FAILURES_IN_A_ROW} processes in a row have failed there, the last one with "
                f"{error}; no worker group is started there any more in this call"
            )
        return bool(others)

    def succeeded(self, nodes: Iterable[str]) -> None:
        """A group has trained a segment there."""
        for node in nodes:
            self._failures.pop(node, None)
            self._suspected.discard(node)

    def to_avoid(self) -> tuple[str, ...]:
        """The nodes on which the group that is started next should not be, if there are others."""
        avoided, self._suspected = self._left_out | self._suspected, set()
        return tuple(sorted(avoided)) if self._candidates() - avoided else ()
