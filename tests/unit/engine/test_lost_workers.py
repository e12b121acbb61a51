"""What counts as a lost process and what as the training's own error; groups that stand still; damaged records."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from records import make_segment, make_trained

from latentsync_ray.config.search import BudgetConfig, WorkersConfig
from latentsync_ray.core.record import Speed
from latentsync_ray.core.segment import Segment
from latentsync_ray.engine.engine import Engine
from latentsync_ray.engine.messages import (
    Answer,
    EngineSetup,
    Failed,
    Fault,
    Finished,
    GroupSetup,
    OrderFailure,
    Rank,
    SegmentOutcome,
    StoredState,
    Timings,
    WorkerSetup,
)
from latentsync_ray.engine.nodes import MAX_FAILURES_IN_A_ROW, Nodes
from latentsync_ray.engine.notices import Notices
from latentsync_ray.engine.orders import MAX_FAILURES, MAX_LOSSES
from latentsync_ray.store import Store

PAIR = Segment("root", "first_stage", {"num_workers": 2}, 0, 0, 4)
"""Two ranks train it."""
OUTCOME = SegmentOutcome({"val/recon": 1.0}, StoredState("0", 8), Timings(0.0, 4.0, 0.0), {})


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class OneGroup(Engine):
    """A search over one segment, whose worker group is the test."""

    def __init__(self, folder: Path):
        workers = WorkersConfig(stall_minutes=10)
        groups = GroupSetup("engine", workers, "trivial:TrivialTraining", str(folder), 300.0, str(folder), False)
        self.clock = Clock()
        super().__init__(EngineSetup(groups, 0, BudgetConfig()), self.clock)
        self.ended = list[Rank]()
        self.watch._end = self.ended.extend
        self.number = 0
        self.has_another_node = False

    def _candidates(self) -> set[str]:
        return {"node", "other"} if self.has_another_node else {"node"}

    async def _run_group(self, name: str, num_workers: int) -> str | None:
        await asyncio.Event().wait()
        return None

    async def order(self) -> None:
        order = await asyncio.wait_for(self.next_order("group-1", self.number), timeout=10)
        assert order is not None and order.segment == PAIR

    async def fails(self, *ranks: int, error: str = "Connection closed by peer", of_a_peer: bool = True) -> None:
        for rank in ranks:
            failure = OrderFailure(error, Fault.ERROR, rank, "node", True, False, of_a_peer, None)
            await self.order_failed("group-1", self.number, failure)

    async def starts_again(self) -> None:
        _, self.number = await self.join("group-1")

    async def finishes(self) -> None:
        serving = asyncio.create_task(self.order_finished("group-1", self.number, OUTCOME))
        await asyncio.sleep(0.01)
        serving.cancel()


def search(folder: Path, test: Callable[[OneGroup, asyncio.Task[Answer]], object]) -> None:
    async def run() -> None:
        engine = OneGroup(folder)
        serving = asyncio.create_task(engine.serve("searches/s", WorkerSetup({}), 1))
        asking = asyncio.create_task(engine.run("t0", "process", "root", PAIR))
        while "group-1" not in engine.pool.runs:
            await asyncio.sleep(0.01)
        await engine.starts_again()
        await engine.order()
        await test(engine, asking)  # type: ignore[misc]
        asking.cancel()
        serving.cancel()

    asyncio.run(run())


def test_an_error_that_follows_from_a_killed_rank_is_a_loss(tmp_path: Path) -> None:
    async def test(engine: OneGroup, asking: asyncio.Task[Answer]) -> None:
        for _ in range(MAX_LOSSES - 1):
            await engine.fails(0)
            assert engine.dispatcher.book.orders[PAIR.key].begun  # nothing is decided yet
            await engine.starts_again()
            await engine.order()
        order = engine.dispatcher.book.orders[PAIR.key]
        assert order.losses == len(order.errors) == MAX_LOSSES - 1
        assert order.errors[0] == "a worker was lost (rank 0 says: Connection closed by peer)"
        await engine.finishes()
        assert isinstance(await asking, Finished)

    search(tmp_path, test)


def test_what_lost_workers_had_published_is_not_trained_again(tmp_path: Path) -> None:
    """They may be killed between publishing and telling."""

    def publish() -> None:
        Store(str(tmp_path)).publish(make_trained(PAIR), {"model.weight": torch.zeros(1)})

    async def replaced(engine: OneGroup, asking: asyncio.Task[Answer]) -> None:
        await engine.fails(0)
        publish()
        await engine.starts_again()
        assert not engine.recovery._reports  # what was said of this order is not held against the next one
        assert isinstance(await asyncio.wait_for(asking, 10), Finished)
        assert not engine.dispatcher.book.orders and PAIR.key in engine.dispatcher.states.kept

    async def ended(engine: OneGroup, asking: asyncio.Task[Answer]) -> None:
        publish()
        await engine.recovery.group_ended(engine.pool.runs["group-1"], "the controller was killed")
        assert isinstance(await asyncio.wait_for(asking, 10), Finished)
        assert not engine.dispatcher.book.orders and not engine.pool.runs

    search(tmp_path, replaced)
    shutil.rmtree(tmp_path / "segments")
    search(tmp_path, ended)


def test_what_every_rank_says_is_an_error(tmp_path: Path) -> None:
    async def test(engine: OneGroup, asking: asyncio.Task[Answer]) -> None:
        for number in range(MAX_FAILURES):
            await engine.fails(1, 0, error="shapes do not fit")
            await engine.starts_again()
            if number < MAX_FAILURES - 1:
                await engine.order()
        assert await asking == Failed("first_stage from step 0 to 4: shapes do not fit")

    search(tmp_path, test)


def test_what_no_peer_can_cause_is_an_error_at_once(tmp_path: Path) -> None:
    """One rank fails by itself, and the other one's collective operation fails with it."""

    async def test(engine: OneGroup, asking: asyncio.Task[Answer]) -> None:
        await engine.fails(0)
        await engine.fails(1, error="KeyError: 'clip'", of_a_peer=False)
        order = engine.dispatcher.book.orders[PAIR.key]
        assert (order.errors, order.losses) == (["KeyError: 'clip'"], 0)

    search(tmp_path, test)


def test_a_group_that_stands_still_is_ended(tmp_path: Path) -> None:
    """One of two ranks hangs; the usual step takes a second here, so ten minutes count."""

    async def test(engine: OneGroup, asking: asyncio.Task[Answer]) -> None:
        ranks = [Rank(number, "node", 100 + number) for number in range(2)]
        for rank in ranks:
            await engine.moved("group-1", rank)
        for _ in range(12):
            engine.clock.now += 59
            await engine.moved("group-1", ranks[0])
            await engine.watch.end_stalled()
        assert engine.ended == ranks
        (notice,) = (await engine.status()).notices
        assert notice.startswith(
            "group-1: first_stage to step 4: has not moved for 10 minutes; its processes are ended"
        )
        await engine.starts_again()
        await engine.order()
        assert engine.dispatcher.book.orders[PAIR.key].losses == 1

    search(tmp_path, test)


def test_slow_steps_are_no_hang(tmp_path: Path) -> None:
    async def test(engine: OneGroup, asking: asyncio.Task[Answer]) -> None:
        engine.totals.add(PAIR, Timings(0.0, 4 * 60.0, 0.0), Speed())  # a minute a step
        for _ in range(3):
            engine.clock.now += 1190
            await engine.moved("group-1", Rank(0, "node", 100))
            await engine.watch.end_stalled()
        assert engine.ended == []
        engine.clock.now += 1201
        await engine.watch.end_stalled()
        assert [rank.number for rank in engine.ended] == [0]

    search(tmp_path, test)


def test_a_group_without_an_order_may_stand_still(tmp_path: Path) -> None:
    async def test(engine: OneGroup, asking: asyncio.Task[Answer]) -> None:
        await engine.moved("group-1", Rank(0, "node", 100))
        await engine.finishes()
        engine.clock.now += 10_000
        await engine.watch.end_stalled()
        assert engine.ended == []

    search(tmp_path, test)


def test_a_damaged_record_does_not_keep_its_state(tmp_path: Path) -> None:
    """As a budget of storage meets it when it makes room."""
    store, segment = Store(str(tmp_path)), make_segment()
    store.publish(make_trained(segment), {"model.weight": torch.zeros(1)})
    (tmp_path / "segments" / segment.key / "record.json").write_text("{")
    store.drop_state(segment.key)
    assert store.state_bytes() == 0


def test_a_lineage_that_goes_on_elsewhere_is_told_once(tmp_path: Path) -> None:
    store, segments = Store(str(tmp_path)), [make_segment()]
    for end in (8, 12, 16):
        segments.append(Segment(segments[-1].key, "first_stage", {"num_workers": 1}, end - 4, 0, end))
    for segment, device in zip(segments, ("H100", "H100", "A100", "A100"), strict=True):
        environment = {"torch": "2.13", "device": device}
        store.publish(make_trained(segment, environment=environment), {"model.weight": torch.zeros(1)})

    async def search() -> None:
        engine = OneGroup(tmp_path)
        serving = asyncio.create_task(engine.serve("searches/s", WorkerSetup({}), 1))
        for segment in segments:
            assert isinstance(await engine.run("t0", "process", segments[0].parent, segment), Finished)
        assert [notice.partition(", so")[0] for notice in (await engine.status()).notices] == [
            "segments of one lineage were trained under device H100 and under device A100"
        ]
        serving.cancel()

    asyncio.run(search())


def test_what_fails_without_a_reason_of_its_own_is_tried_on_another_node(tmp_path: Path) -> None:
    async def test(engine: OneGroup, asking: asyncio.Task[Answer]) -> None:
        engine.has_another_node = True
        await engine.fails(0, 1, error="AcceleratorError: an illegal memory access", of_a_peer=False)
        assert await engine.next_order("group-1", 1) is None  # the group ends
        assert engine.nodes.to_avoid() == ("node",)
        assert engine.nodes.to_avoid() == ()  # what comes after that may be there again

    search(tmp_path, test)


def test_a_node_on_which_processes_fail_in_a_row_is_left_out() -> None:
    notices, candidates = Notices(), {"a", "b"}
    nodes = Nodes(lambda: candidates, notices)
    for node in ("a", "a", "b"):
        assert nodes.failed(node, "it is broken")
    nodes.succeeded(["a"])
    for _ in range(MAX_FAILURES_IN_A_ROW):
        assert nodes.failed("b", "it is broken") and nodes.to_avoid() == ("b",)
    for _ in range(2):
        assert nodes.to_avoid() == ("b",)
    (notice,) = notices.lines
    assert notice.startswith("node b: 3 processes in a row have failed there, the last one with it is broken; no")


def test_the_only_node_is_never_left_out() -> None:
    nodes = Nodes(lambda: {"a"}, notices := Notices())
    for _ in range(2 * MAX_FAILURES_IN_A_ROW):
        assert not nodes.failed("a", "it is broken")
    assert nodes.to_avoid() == () and notices.lines == []
