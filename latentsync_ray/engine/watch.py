"""Ends worker groups that hang, for example in a collective operation that one rank never joins."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from latentsync_ray.config.search import WorkersConfig
from latentsync_ray.engine.assignment import Assignment
from latentsync_ray.engine.groups import end_processes
from latentsync_ray.engine.messages import Rank
from latentsync_ray.engine.notices import Notices
from latentsync_ray.engine.pool import WorkerPool
from latentsync_ray.engine.totals import Totals

_USUAL_STEPS = 20
"""A group may stand still for at least as long as this many steps usually take."""


@dataclass
class _Movement:
    """What was heard of a group while it trains one order."""

    number: int
    """Of the order."""
    since: float
    """When the order was given, or the group was ended because of it."""
    ranks: dict[Rank, float] = field(default_factory=dict)
    """When each process last told that it moves."""

    @property
    def still_since(self) -> float:
        """When the slowest process moved last."""
        return max(self.since, min(self.ranks.values(), default=self.since))


class Watch:
    """Follows how far the groups are.

    Args:
        pool: The groups.
        assignment: What they train.
        totals: How long a step usually takes.
        workers: How long a group may stand still.
        notices: For the user.
        clock: Seconds.
        end: Kills processes; a group whose process was killed counts a loss.
    """

    def __init__(
        self,
        pool: WorkerPool,
        assignment: Assignment,
        totals: Totals,
        workers: WorkersConfig,
        notices: Notices,
        clock: Callable[[], float],
        end: Callable[[list[Rank]], None] = end_processes,
    ):
        self._pool, self._assignment, self._totals = pool, assignment, totals
        self._least_seconds = 60 * workers.stall_minutes
        self._notices, self._clock, self._end = notices, clock, end
        self._movements: dict[str, _Movement] = {}

    def moved(self, group: str, rank: Rank) -> None:
        """A process has taken steps, or does something else that takes its time."""
        if group in self._pool.runs:
            self._movement(group).ranks[rank] = self._clock()

    def nodes(self, group: str) -> set[str]:
        """Ids of the nodes on which a group's processes are, as far as they have told."""
        return {rank.node_id for rank in self._movement(group).ranks}

    async def end_stalled(self) -> None:
        """Ends the processes of groups that have stood still for too long; Ray Train starts others in their place."""
        self._movements = {group: it for group, it in self._movements.items() if group in self._pool.runs}
        per_step = self._totals.newest_seconds_per_step or 0.0
        allowed = max(self._least_seconds, _USUAL_STEPS * per_step)
        for group in self._pool.joined():
            order = self._assignment.order_of(group.name)
            if order is None:
                self._movements.pop(group.name, None)
                continue
            movement = self._movement(group.name)
            # Without processes that have told of themselves it is being replaced, which Ray Train looks after.
            if not movement.ranks or self._clock() - movement.still_since <= allowed:
                continue
            segment = order.segment
            self._notices.add(
                f"{group.name}: {segment.stage} to step {segment.end_step}: has not moved for {allowed / 60:.3g} "
                "minutes; its processes are ended, and others try (workers.stall_minutes)"
            )
            ranks = list(movement.ranks)
            self._movements[group.name] = _Movement(group.number, self._clock())
            await asyncio.to_thread(self._end, ranks)

    def _movement(self, group: str) -> _Movement:
        number = self._pool.runs[group].number
        movement = self._movements.get(group)
        if movement is None or movement.number != number:
            ranks = {} if movement is None else dict.fromkeys(movement.ranks, self._clock())
            movement = self._movements[group] = _Movement(number, self._clock(), ranks)
        return movement
