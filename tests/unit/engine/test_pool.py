"""Worker groups that run: what their ranks wait for, what they cost, and starts that fail."""

from __future__ import annotations

import asyncio

from latentsync_ray.core.segment import Segment
from latentsync_ray.engine.decisions import StartGroup
from latentsync_ray.engine.dispatcher import Dispatcher
from latentsync_ray.engine.pool import MAX_FAILED_STARTS, WorkerPool

SEGMENT = Segment("root", "first_stage", {"num_workers": 2}, 0, 0, 4)


class Pool(WorkerPool):
    """Two groups of two workers at most, on a clock that the test moves; a group ends when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.dispatcher = Dispatcher(max_groups=2)
        self.dispatcher.add_root("root")
        self.ends: dict[str, asyncio.Future[str | None]] = {}
        super().__init__(self.dispatcher.assignment, self._until_told, lambda: self.now)

    async def _until_told(self, name: str, num_workers: int) -> str | None:
        self.ends[name] = asyncio.get_running_loop().create_future()
        return await self.ends[name]


def test_ranks_wait_for_an_order_and_all_get_the_same_one() -> None:
    async def run() -> None:
        pool = Pool()
        group = pool.start(pool.dispatcher.assignment.start_group(2))
        pool.join(group.name)
        pool.dispatcher.assignment.up(group.name, 0.0)
        ranks = [asyncio.create_task(pool.wait_for_order(group.name, 0)) for _ in range(2)]
        pool.dispatcher.ask(SEGMENT, "t0")
        await asyncio.sleep(0)
        assert pool.dispatcher.assignment.assign(group.name, 0.0) is not None
        group.wake()
        first, second = await asyncio.gather(*ranks)
        assert first is not None and first is second and first.segment == SEGMENT
        assert pool.order_stands(group.name, 0) is first
        # One rank asks for the next order while another one still reports this one.
        assert pool.order_stands(group.name, 1) is None
        pool.dispatcher.finish(group.name, 0.0)
        pool.finish_order(group.name)
        assert await pool.wait_for_order(group.name, 0) is None  # too late
        assert pool.order_stands("group-9", 0) is None

    asyncio.run(run())


def test_nobody_waits_in_a_group_that_stops_or_has_ended() -> None:
    async def run() -> None:
        pool = Pool()
        for end in ("stops", "has ended"):
            group = pool.start(pool.dispatcher.assignment.start_group(2))
            waiting = asyncio.create_task(pool.wait_for_order(group.name, 0))
            await asyncio.sleep(0)
            if end == "stops":
                pool.dispatcher.assignment.stop_group(group.name)
                group.wake()
            else:
                pool.dispatcher.end_group(group.name, "lost", 0.0)
                pool.remove(group)
            assert await asyncio.wait_for(waiting, timeout=10) is None

    asyncio.run(run())


def test_workers_cost_from_when_they_report_until_their_group_has_ended() -> None:
    pool = Pool()
    first, second = (pool.start(StartGroup(f"g{number}", 2)) for number in range(2))
    pool.now = 10.0
    assert (pool.seconds_held(), pool.num_starting()) == (0.0, 2)
    pool.join(first.name)
    pool.now = 15.0
    pool.join(first.name)  # new workers in the place of lost ones
    assert (pool.seconds_held(), pool.num_starting(), first.startup_seconds) == (10.0, 1, 10.0)
    pool.remove(first)
    pool.now = 100.0
    pool.remove(second)
    assert pool.seconds_held() == 10.0


def test_only_starts_that_fail_one_after_another_count() -> None:
    async def run() -> None:
        pool = Pool()

        async def end(error: str | None, joins: bool) -> bool:
            group = pool.start(StartGroup("g", 2))
            running = asyncio.create_task(pool.run(group))
            await asyncio.sleep(0)
            if joins:
                pool.join("g")
            pool.ends["g"].set_result(error)
            assert await running == error
            pool.remove(group)
            return pool.cannot_start()

        for joins in (True, False, True):
            assert [await end("no place", joins) for _ in range(MAX_FAILED_STARTS - 1)] == [False] * 2
        assert not await end(None, joins=False)
        assert [await end("no place", joins=False) for _ in range(MAX_FAILED_STARTS)] == [False, False, True]
        assert not await end("no place", joins=False)  # counting has begun again

    asyncio.run(run())
