"""What the engine owes to those who ask it, without a worker."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from records import make_trained

from latentsync_ray.config.errors import UserError
from latentsync_ray.config.search import BudgetConfig, WorkersConfig
from latentsync_ray.core.record import Record, StoredState, Timings
from latentsync_ray.core.segment import Segment
from latentsync_ray.engine.budget import Exceeded
from latentsync_ray.engine.engine import Engine
from latentsync_ray.engine.known import Result
from latentsync_ray.engine.messages import (
    Answer,
    EngineSetup,
    Failed,
    Fault,
    Finished,
    GroupSetup,
    OrderFailure,
    SegmentOutcome,
    Unfinished,
    WorkerOrder,
    WorkerSetup,
)
from latentsync_ray.engine.notes import read_spent
from latentsync_ray.engine.pool import MAX_FAILED_STARTS
from latentsync_ray.report.trials import Boundary, TrialResult, TrialStatus
from latentsync_ray.report.trials_file import write_trials
from latentsync_ray.store import StorageError, Store
from latentsync_ray.store.searches import Searches
from latentsync_ray.store.upkeep import whole_records

OUTCOME = SegmentOutcome({"val/recon": 1.0}, StoredState("0", 8), Timings(0.0, 0.0, 0.0), {})
SEGMENT = Segment("root", "first_stage", {"num_workers": 1}, 0, 0, 4)


class Clock:
    """A clock that the test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class WithoutWorkers(Engine):
    """Its worker groups have no workers but the test, which speaks for them."""

    async def _run_group(self, name: str, num_workers: int) -> str | None:
        """Lasts for ever."""
        await asyncio.Event().wait()
        return None


def engine_setup(folder: Path, budget: BudgetConfig = BudgetConfig()) -> EngineSetup:  # noqa: B008
    groups = GroupSetup("engine", WorkersConfig(), "trivial:TrivialTraining", str(folder), 300.0, str(folder), False)
    return EngineSetup(groups, 0, budget)


def new_engine(folder: Path, budget: BudgetConfig = BudgetConfig()) -> WithoutWorkers:  # noqa: B008
    return WithoutWorkers(engine_setup(folder, budget), Clock())


async def first_order(engine: Engine) -> WorkerOrder:
    """What the first worker group is given, once it has come up."""
    assert (await engine.join("group-1"))[1] == 0
    order = await engine.next_order("group-1", 0)
    assert order is not None
    return order


def lost(parent: Segment, error: str) -> OrderFailure:
    """The state to start from is damaged or gone."""
    return OrderFailure(
        error, Fault.ERROR, 0, "node", restarting=False, explained=True, may_be_a_peers=False, lost_parent=parent.key
    )


def serve(engine: Engine) -> asyncio.Task[None]:
    """What the driver calls once its inputs are ready."""
    return asyncio.create_task(engine.serve("searches/s", WorkerSetup({}), 1))


async def until(condition: Callable[[], object]) -> None:
    """Waits for what has to come, however slow the machine is."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def settle() -> None:
    """Lets everything run that could do what must not happen."""
    for _ in range(20):
        await asyncio.sleep(0.01)


def ask(engine: Engine, trial: str, process: str) -> asyncio.Task[Answer]:
    return asyncio.create_task(engine.run(trial, process, "root", SEGMENT))


def test_only_the_process_that_asks_for_a_trial_can_leave_for_it(tmp_path: Path) -> None:
    async def search() -> None:
        engine = new_engine(tmp_path)
        serving = serve(engine)
        asking = ask(engine, "t0", "second process")
        await until(lambda: engine.dispatcher.book.orders)
        # Ray Tune had started another process for the trial, which it no longer needs.
        await engine.end_trial("t0", "first process", None)
        assert [order.waiters for order in engine.dispatcher.book.orders.values()] == [{"t0"}]
        await engine.end_trial("t0", "second process", None)
        assert not engine.dispatcher.book.orders
        asking.cancel()
        serving.cancel()

    asyncio.run(search())


def test_a_record_that_appears_while_the_store_is_read_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(Store):
        """Says what there was before another worker published."""

        def read_record(self, key: str) -> Record | None:
            engine.known.results[SEGMENT.key] = Result({"val/recon": 1.0}, StoredState("0", 8), {})
            return None

    async def search() -> None:
        serving = serve(engine)
        answer = await asyncio.wait_for(ask(engine, "t0", "process"), timeout=10)
        assert answer == Finished({"val/recon": 1.0}, cached=True, ahead={})
        assert not engine.dispatcher.book.orders
        serving.cancel()

    monkeypatch.setattr("latentsync_ray.engine.engine.Store", Slow)
    engine = new_engine(tmp_path)
    asyncio.run(search())


def test_a_notice_about_a_fault_names_the_trials_once(tmp_path: Path) -> None:
    """The order of two trials fails twice in the same way, and then for good."""

    async def search() -> None:
        engine = new_engine(tmp_path)
        serving = serve(engine)
        asking = [ask(engine, trial, trial) for trial in ("t1", "t0")]
        await until(lambda: [order.waiters for order in engine.dispatcher.book.orders.values()] == [{"t0", "t1"}])
        await first_order(engine)
        failure = OrderFailure(
            "no such clip",
            Fault.ERROR,
            0,
            "node",
            restarting=False,
            explained=True,
            may_be_a_peers=False,
            lost_parent=None,
        )
        await engine.order_failed("group-1", 0, failure)
        assert (await engine.next_order("group-1", 1)) is not None
        await engine.order_failed("group-1", 1, failure)
        answers = [await asyncio.wait_for(answer, timeout=10) for answer in asking]
        assert answers == [Failed("first_stage from step 0 to 4: no such clip")] * 2
        assert (await engine.status()).notices == ("group-1: first_stage to step 4 for t0 and 1 more: no such clip",)
        serving.cancel()

    asyncio.run(search())


def test_an_order_whose_past_is_gone_is_given_up(tmp_path: Path) -> None:
    """The parent's state is damaged, and the record of the segment before it, which would mend that, is gone."""
    parent = Segment("lost", "first_stage", {"num_workers": 1}, 4, 0, 8)
    child = Segment(parent.key, "first_stage", {"num_workers": 1}, 8, 0, 12)
    Store(str(tmp_path)).publish(make_trained(parent), {"model.weight": torch.zeros(1)})

    async def search() -> None:
        engine = new_engine(tmp_path)
        serving = serve(engine)
        asking = asyncio.create_task(engine.run("t0", "process", "root", child))
        await until(lambda: engine.pool.runs)
        order = await first_order(engine)
        assert order.segment == child
        assert order.parent is not None and order.parent.stage == parent.stage
        await engine.order_failed("group-1", 0, lost(parent, "damaged"))
        answer = await asyncio.wait_for(asking, timeout=10)
        assert isinstance(answer, Failed) and "its record is gone" in answer.error
        serving.cancel()

    asyncio.run(search())


def publish(store: Store, *segments: Segment) -> None:
    for segment in segments:
        trained = make_trained(segment, {"val/recon": float(segment.end_step)})
        store.publish(trained, {"model.weight": torch.zeros(1)})


def test_what_another_search_has_trained_and_passed_is_not_trained_again(tmp_path: Path) -> None:
    """It has dropped the state that an order starts from, having trained what was ordered."""
    parent = Segment("root", "second_stage", {"num_workers": 1}, 0, 0, 4)
    child = Segment(parent.key, "second_stage", {"num_workers": 1}, 4, 0, 8)
    store = Store(str(tmp_path))
    publish(store, parent)

    async def search() -> None:
        engine = new_engine(tmp_path)
        serving = serve(engine)
        await engine.run("t0", "process", "root", parent)
        asking = asyncio.create_task(engine.run("t0", "process", "root", child))
        await until(lambda: engine.pool.runs)
        order = await first_order(engine)
        assert order.segment == child
        assert order.parent is not None and order.parent.stage == parent.stage
        publish(store, child)
        store.drop_state(parent.key)
        await engine.order_failed("group-1", 0, lost(parent, "it is gone"))
        answer = await asyncio.wait_for(asking, timeout=10)
        assert answer == Finished({"val/recon": 8.0}, cached=False, ahead={})
        assert not engine.dispatcher.book.orders
        assert (await engine.status()).notices == ()
        serving.cancel()

    asyncio.run(search())


def test_nothing_is_dropped_while_another_search_runs_in_the_store(tmp_path: Path) -> None:
    first = Segment("root", "second_stage", {"num_workers": 1}, 0, 0, 4)
    second = Segment(first.key, "second_stage", {"num_workers": 1}, 4, 0, 8)
    third = Segment(second.key, "second_stage", {"num_workers": 1}, 8, 0, 12)
    store = Store(str(tmp_path))
    publish(store, first, second, third)
    store.write_json("searches/other/spent.json", {"worker_seconds": 1.0, "wall_seconds": 1.0})

    def kept() -> set[str]:
        return {key for key, record in whole_records(store).items() if record.state.kept}

    async def search() -> None:
        engine = new_engine(tmp_path)
        serving = serve(engine)
        for segment in (first, second):
            await engine.run("t0", "process", "root", segment)
        await engine._keep_house()
        await settle()
        assert kept() == {first.key, second.key, third.key}
        await engine.checkpoint("t1", first.key)  # meanwhile it is needed again
        await engine.run("t0", "process", "root", third)
        await engine.end_trial("t0", "process", third.key)
        ended = TrialResult(0, {}, (), TrialStatus.FINISHED)
        write_trials(store, "searches/other", [ended], ended, 0)
        await engine.stop()
        await serving
        assert kept() == {first.key, third.key}

    asyncio.run(search())


@pytest.mark.parametrize("phase", ["interrupted", "unknown", "given up"])
def test_what_an_interrupted_search_may_need_is_not_dropped(phase: str, tmp_path: Path) -> None:
    """It may branch from step 4 on, where this search, which branches at 32, needs nothing any more."""
    segments = [Segment("root", "first_stage", {"num_workers": 1}, 0, 0, 2)]
    for end in range(4, 18, 2):
        segments.append(Segment(segments[-1].key, "first_stage", {"num_workers": 1}, end - 2, 0, end))
    *found, own = segments
    store = Store(str(tmp_path))
    publish(store, *found)
    if phase == "unknown":
        store.write_json("searches/other/decisions/1.json", {})
    else:
        write_trials(store, "searches/other", [], None, 4)
    if phase == "given up":
        Searches(store).give_up("other")

    async def search() -> None:
        setup = dataclasses.replace(engine_setup(tmp_path), keep_first_stage_from=32)
        engine = WithoutWorkers(setup, Clock())
        serving = serve(engine)
        for segment in found:
            await engine.run("t0", "process", "root", segment)
        asking = asyncio.create_task(engine.run("t0", "process", "root", own))
        await until(lambda: engine.pool.runs)
        assert (await first_order(engine)).segment == own
        publish(store, own)
        finished = asyncio.create_task(engine.order_finished("group-1", 0, OUTCOME))
        await asyncio.wait_for(asking, timeout=10)
        notices = (await engine.status()).notices
        said = ["other was interrupted and may go on" in notice for notice in notices]
        assert said == ([] if phase == "given up" else [True])
        await engine.end_trial("t0", "process", own.key)
        await engine.background.wait()
        finished.cancel()
        serving.cancel()

    asyncio.run(search())
    dropped = [segment.end_step for segment in segments if not whole_records(store)[segment.key].state.kept]
    assert dropped == ([2, 4, 6, 8, 10, 12, 14] if phase == "given up" else [])


def test_the_last_state_of_another_searchs_trial_is_not_dropped(tmp_path: Path) -> None:
    """It has ended; this one goes on from there, as a longer stage two does."""
    segments = [Segment("root", "second_stage", {"num_workers": 1}, 0, 0, 4)]
    for end in (8, 12, 16):
        segments.append(Segment(segments[-1].key, "second_stage", {"num_workers": 1}, end - 4, 0, end))
    store = Store(str(tmp_path))
    publish(store, *segments)
    results = tuple(Boundary.after(segment, {}) for segment in segments[:2])
    ended = TrialResult(0, {}, results, TrialStatus.FINISHED)
    write_trials(store, "searches/ended", [ended], ended, 0)

    async def search() -> None:
        engine = new_engine(tmp_path)
        serving = serve(engine)
        for segment in segments:
            await engine.run("t0", "process", "root", segment)
        await engine.end_trial("t0", "process", segments[-1].key)
        await engine.stop()
        await serving

    asyncio.run(search())
    records = whole_records(store)
    assert [records[segment.key].state.kept for segment in segments] == [False, True, False, True]


def test_groups_that_never_come_up_are_given_up(tmp_path: Path) -> None:
    class WithoutStarts(Engine):
        num_starts = 0

        async def _run_group(self, name: str, num_workers: int) -> str | None:
            self.num_starts += 1
            return "RuntimeError: no place"

    async def search() -> None:
        engine = WithoutStarts(engine_setup(tmp_path))
        serving = serve(engine)
        answer = await asyncio.wait_for(ask(engine, "t0", "process"), timeout=10)
        assert isinstance(answer, Failed)
        assert answer.error.endswith("worker groups cannot be started: RuntimeError: no place")
        assert engine.num_starts == MAX_FAILED_STARTS
        serving.cancel()

    asyncio.run(search())


def test_at_a_budget_nothing_new_begins_and_who_waits_is_let_go(tmp_path: Path) -> None:
    async def search() -> None:
        clock = Clock()
        engine = WithoutWorkers(engine_setup(tmp_path, BudgetConfig(wall_hours=1)), clock)
        serving = serve(engine)
        await until(engine._serving.is_set)
        clock.now = 3601.0
        engine.spending.answered()
        await engine._keep_house()
        asking = ask(engine, "t0", "process")
        await settle()
        assert not asking.done() and not engine.pool.runs
        assert (await engine.status()).stopped_by is None  # trials may still find what is stored
        clock.now += 60
        stopped_by = (await engine.status()).stopped_by
        assert stopped_by == Exceeded("wall_hours", 3601 / 3600, 1)
        await engine.release()
        assert await asking == Unfinished(stopped_by)
        assert await ask(engine, "t1", "process") == Unfinished(stopped_by)
        await engine.stop()
        await asyncio.wait_for(serving, timeout=10)

    asyncio.run(search())
    assert read_spent(Store(str(tmp_path)), "searches/s").wall_seconds > 0


def test_a_full_budget_of_storage_first_takes_what_no_trial_needs(tmp_path: Path) -> None:
    first = Segment("root", "first_stage", {"num_workers": 1}, 0, 0, 4)
    second = Segment(first.key, "second_stage", {"num_workers": 1}, 4, 4, 8)
    store = Store(str(tmp_path))
    for segment in (first, second):
        store.publish(make_trained(segment), {"model.weight": torch.zeros(1000)})
    both = store.state_bytes()
    assert both > 8000

    async def search() -> None:
        engine = new_engine(tmp_path, BudgetConfig(storage_gb=(both - 1) / 1e9))
        serving = [serve(engine)]
        await engine.run("t0", "process", "root", first)
        await engine._keep_house()
        assert engine.spending.used_up is not None  # the only trial may still branch there

        engine = new_engine(tmp_path, BudgetConfig(storage_gb=(both - 1) / 1e9))
        serving.append(serve(engine))
        for segment in (first, second):
            await engine.run("t0", "process", "root", segment)
        await engine._keep_house()
        assert engine.spending.used_up is None
        assert store.state_bytes() == engine.spending.stored_bytes == both / 2
        for task in serving:
            task.cancel()

    asyncio.run(search())


def test_a_storage_that_is_full_is_a_notice_and_the_engine_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(Store):
        def write_bytes(self, name: str, content: bytes) -> None:
            raise StorageError.at(name, OSError(28, "No space left on device"))

    monkeypatch.setattr("latentsync_ray.engine.engine.Store", Full)

    async def search() -> None:
        engine = new_engine(tmp_path)
        for _ in range(3):
            await engine.spending.write_down(engine.notes)
        (notice,) = (await engine.status()).notices
        assert "No space left on device" in notice
        await engine.stop()

    asyncio.run(search())


def test_an_engine_that_cannot_serve_tells_those_who_wait(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write_json("searches/s/spent.json", {"worker_seconds": 1.0})
    (tmp_path / "searches/s/spent.json").write_text("{}", encoding="utf-8")

    async def search() -> None:
        engine = new_engine(tmp_path)
        asking = ask(engine, "t0", "process")
        serving = serve(engine)
        answer = await asyncio.wait_for(asking, timeout=10)
        assert isinstance(answer, Failed) and "what was spent is not known; delete it" in answer.error
        with pytest.raises(UserError, match="what was spent is not known"):
            await serving

    asyncio.run(search())
