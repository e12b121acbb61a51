"""The worker groups that run: started, joined by their workers, asked for orders, ended."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from latentsync_ray.engine.assignment import Assignment, Phase
from latentsync_ray.engine.decisions import StartGroup
from latentsync_ray.engine.orders import Order

_T = TypeVar("_T")

MAX_FAILED_STARTS = 3
"""After this many groups in a row that end before their workers report, those who wait are told."""

RunGroup = Callable[[str, int], Awaitable[str | None]]
"""Runs a group of a name and a number of workers to its end. Gives what ended it too early, one line, or None."""


@dataclass
class Run:
    """A worker group that runs."""

    name: str
    num_workers: int
    started_at: float
    number: int = 0
    """Number of its first unfinished order; every rank asks by number, so ranks agree."""
    joined_at: float | None = None
    num_joins: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set, and replaced by another, whenever something changes of what its ranks wait for."""

    @property
    def startup_seconds(self) -> float:
        """From its start until its workers reported."""
        assert self.joined_at is not None
        return self.joined_at - self.started_at

    def wake(self) -> None:
        """Has its ranks look again."""
        self.changed.set()
        self.changed = asyncio.Event()


class WorkerPool:
    """The groups, from their start to their end. What each of them trains is for the assignment to say.

    Args:
        assignment: Who trains what.
        run_group: Runs a group to its end.
        clock: Seconds.
    """

    def __init__(self, assignment: Assignment, run_group: RunGroup, clock: Callable[[], float]):
        self.runs: dict[str, Run] = {}
        """By name."""
        self._assignment, self._run_group, self._clock = assignment, run_group, clock
        self._seconds_of_ended = 0.0
        self._num_failed_starts = 0

    def start(self, group: StartGroup) -> Run:
        """Notes a group that `run` is about to run."""
        run = self.runs[group.group] = Run(group.group, group.num_workers, self._clock())
        return run

    async def run(self, run: Run) -> str | None:
        """Runs a group to its end. Returns what ended it too early, one line, or None."""
        error = await self._run_group(run.name, run.num_workers)
        if error is not None and run.joined_at is None:
            self._num_failed_starts += 1
        return error

    def remove(self, run: Run) -> None:
        """A group has ended, and the assignment knows."""
        self._seconds_of_ended += self._seconds_held(run)
        del self.runs[run.name]
        run.wake()

    def cannot_start(self) -> bool:
        """Whether too many groups in a row have failed to start; if so, counting begins again."""
        if self._num_failed_starts < MAX_FAILED_STARTS:
            return False
        self._num_failed_starts = 0
        return True

    def join(self, name: str) -> Run:
        """The workers of a group report, the first ones or new ones in their place."""
        run = self.runs[name]
        run.num_joins += 1
        run.joined_at = run.joined_at or self._clock()
        self._num_failed_starts = 0
        return run

    def finish_order(self, name: str) -> None:
        """The group's order has ended in some way."""
        self.runs[name].number += 1
        self.runs[name].wake()

    def order_stands(self, name: str, number: int) -> Order | None:
        """Order `number` of a group, if it is what the group trains now.

        A rank may ask for an order while another one still reports the one before; an engine that was lost knows
        neither the order nor the group.
        """
        run = self.runs.get(name)
        return self._assignment.order_of(name) if run is not None and run.number == number else None

    async def wait_for_order(self, name: str, number: int) -> Order | None:
        """Order `number` of a group, once there is one; None when there will be none."""
        while (order := self.order_stands(name, number)) is None:
            run, group = self.runs.get(name), self._assignment.groups.get(name)
            if run is None or group is None or group.phase is Phase.STOPPING or run.number > number:
                return None
            await run.changed.wait()
        return None if self._assignment.groups[name].phase is Phase.STOPPING else order

    async def wait_for_ends(self) -> None:
        """Waits until all groups that have joined have ended."""
        for run in self.joined():
            while run.name in self.runs:
                await run.changed.wait()

    def joined(self) -> list[Run]:
        """Groups whose workers have reported."""
        return [run for run in self.runs.values() if run.joined_at is not None]

    @property
    def startup_seconds(self) -> float | None:
        """How long the oldest group took to start; None if none is up."""
        first = next(iter(self.joined()), None)
        return None if first is None else first.startup_seconds

    def startup_is_due(self, num_steps: int, seconds_per_step: float | None) -> Run | None:
        """A group that took at least as long to start as so many steps take, so that others are started now; or None.

        Args:
            num_steps: Left until the others have work.
            seconds_per_step: None if it is not known.
        """
        first = next(iter(self.joined()), None)
        if first is None or seconds_per_step is None or num_steps * seconds_per_step > first.startup_seconds:
            return None
        return first

    def num_starting(self) -> int:
        """How many groups have no workers yet."""
        return len(self.runs) - len(self.joined())

    def seconds_held(self) -> float:
        """Seconds of worker processes, those that run now included."""
        return self._seconds_of_ended + sum(self._seconds_held(run) for run in self.runs.values())

    def _seconds_held(self, run: Run) -> float:
        return 0.0 if run.joined_at is None else (self._clock() - run.joined_at) * run.num_workers


async def in_own_thread(function: Callable[..., _T], *arguments: object) -> _T:
    """What a function returns that blocks for as long as a search, in a thread that ends with this process."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[_T] = loop.create_future()

    def run() -> None:
        try:
            value = function(*arguments)
        except BaseException as error:
            loop.call_soon_threadsafe(result.set_exception, error)
        else:
            loop.call_soon_threadsafe(result.set_result, value)

    threading.Thread(target=run, daemon=True).start()
    return await result
