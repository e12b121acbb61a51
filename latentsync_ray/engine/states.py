"""Finished segments, and which of their states can be restored: the one place that knows."""

from __future__ import annotations

from collections import defaultdict

from latentsync_ray.config.recipe import FIRST_STAGE
from latentsync_ray.core.segment import Segment


class KnownStates:
    """The finished segments that the dispatcher has been told of.

    Args:
        keep_first_stage_from: Stage-one states from this global_step on are kept, since a branch may start there.
    """

    def __init__(self, keep_first_stage_from: int = 0):
        self.done: dict[str, Segment] = {}
        """Finished segments by key."""
        self.kept: set[str] = set()
        """Keys whose states can be restored; roots, which need none, are among them."""
        self.num_steps = 0
        """Of all finished segments together."""
        self._keep_first_stage_from = keep_first_stage_from
        self._successors: defaultdict[str, list[str]] = defaultdict(list)
        """Key -> keys of the finished segments that follow it."""
        self._leaps: dict[str, str] = {}
        """Key -> an ancestor such that none between the two has a state that could be dropped."""

    def add_root(self, root: str) -> None:
        """Makes a root known."""
        self.kept.add(root)

    def drop(self, key: str) -> None:
        """The state of this key is about to be deleted, or is gone."""
        self.kept.discard(key)

    def add_done(self, segment: Segment, state_kept: bool) -> None:
        """Makes a finished segment known."""
        key = segment.key
        if key not in self.done:
            self._successors[segment.parent].append(key)
            self.num_steps += segment.num_steps
        elif state_kept and key not in self.kept:
            self._leaps.clear()  # a state that was gone is there again
        self.done[key] = segment
        if state_kept:
            self.kept.add(key)

    def only_successor(self, key: str) -> str | None:
        """Key of the finished segment that follows, if there is exactly one."""
        successors = self._successors.get(key, ())
        return successors[0] if len(successors) == 1 else None

    def droppable(self, key: str) -> bool:
        """Whether a finished segment's state is there, and no trial can leave stage one at it."""
        if key not in self.kept:
            return False
        segment = self.done[key]
        return segment.stage != FIRST_STAGE or segment.end_step < self._keep_first_stage_from

    def droppable_ancestors(self, segment: Segment) -> list[str]:
        """Keys of the ancestors with droppable states; stretches without any are walked only once."""
        found: list[str] = []
        stretch, key = [segment.key], segment.parent
        while True:
            if key not in self.done or self.droppable(key):
                self._leaps.update(dict.fromkeys(stretch, key))
                stretch = []
                if key not in self.done:
                    return found
                found.append(key)
            stretch.append(key)
            key = self._leaps.get(key, self.done[key].parent)

    def leads_to(self, segment: Segment, key: str) -> bool:
        """Whether a segment comes before the one of this key in its lineage, or may do so."""
        while key in self.done and self.done[key].start_step >= segment.end_step:
            key = self.done[key].parent
            if key == segment.key or key not in self.done:  # an engine that was lost does not know all of it yet
                return True
        return False
