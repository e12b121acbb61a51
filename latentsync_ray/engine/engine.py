"""The engine: one async actor per search that answers trials with finished segments.

A known segment is answered at once, one in flight is awaited by all who ask, anything else waits for a warm worker
group. Groups are Ray Train runs that start on demand and end when idle. The actor itself decides nothing: it brings
together the dispatcher (what to train where, and what to keep) and the parts that carry its decisions out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import ray

from latentsync_ray.cluster.ray_internals import HEAD_NODE
from latentsync_ray.config.search import BudgetConfig
from latentsync_ray.core.segment import Segment
from latentsync_ray.engine.answers import Answers
from latentsync_ray.engine.cleaning import Cleaning
from latentsync_ray.engine.decisions import DecideAgain, StartGroup, StopGroup, TrainOrder
from latentsync_ray.engine.dispatcher import Dispatcher
from latentsync_ray.engine.groups import run_group
from latentsync_ray.engine.known import KnownSegments, Result
from latentsync_ray.engine.messages import (
    Answer,
    EngineStatus,
    Failed,
    Finished,
    GroupSetup,
    InTraining,
    OrderFailure,
    SegmentOutcome,
    Unfinished,
    WorkerOrder,
    WorkerSetup,
)
from latentsync_ray.engine.notes import SearchNotes
from latentsync_ray.engine.notices import Notices
from latentsync_ray.engine.pool import Run, WorkerPool, in_own_thread
from latentsync_ray.engine.recovery import Recovery
from latentsync_ray.engine.reservations import Reservations
from latentsync_ray.engine.spending import Spending
from latentsync_ray.engine.totals import Totals
from latentsync_ray.store import StorageError, Store

MAX_CALLS = 100_000
"""Calls that the engine has open at once; every trial that waits is one, and its workers must get through to it."""
MAX_ENGINE_LOSSES = 3
"""This often in a row, with no segment finished in between, the engine may be lost before those who ask are told."""
_PREFETCH = "prefetch"
_NOTE_SECONDS = 5.0
"""How often it is written down what has been spent."""


@dataclass(frozen=True)
class EngineSetup:
    """What an engine is for."""

    groups: GroupSetup
    """What worker groups are started with; its `engine` is this actor's name."""
    keep_first_stage_from: int
    """Stage-one states from this global_step on are kept."""
    budget: BudgetConfig
    """What the search may spend."""
    num_trials: int
    """How many trials there will be in all."""


@dataclass(frozen=True)
class StartedEngine:
    """An engine that runs."""

    actor: Any
    """Its handle."""
    name: str
    """By which other processes find it."""
    results: str
    """Folder or URI below which Ray may write its own files."""


class Engine:
    """Shares segments among trials; started with `start_engine`."""

    def __init__(self, setup: EngineSetup, clock: Callable[[], float] = time.monotonic):
        workers, store = setup.groups.workers, Store(setup.groups.storage)
        self.notices = Notices()
        self.notes = SearchNotes(store, self.notices)
        self.dispatcher = Dispatcher(workers.max_groups, setup.keep_first_stage_from, workers.idle_seconds)
        self.answers = Answers()
        self.totals = Totals()
        self.known = KnownSegments(store, self.dispatcher, self.notices)
        self.pool = WorkerPool(self.dispatcher.assignment, self._run_group, clock)
        self.reservations = Reservations(workers, self.notices)
        self.recovery = Recovery(self.dispatcher, self.known, self.answers, self.pool, self.notices, clock)
        stored_bytes = 0 if setup.budget.storage_gb is None else store.state_bytes()
        self.spending = Spending(setup.budget, stored_bytes, self.pool.seconds_held, clock)
        self.cleaning = Cleaning(store, self.dispatcher, self.known, self.spending, self.notices, self._in_background)
        self._setup, self._clock = setup, clock
        self._inputs: WorkerSetup | None = None
        self._processes: dict[str, str] = {}
        """Trial that goes on -> the process that asks for it."""
        self._num_losses = 0
        self._asked = self._closed = False
        self._serving = asyncio.Event()
        self._decision_due: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Future[Any]] = set()
        """What runs in the background; asyncio itself forgets a task that nobody refers to."""
        self._group_tasks: set[asyncio.Future[Any]] = set()

    # For the driver, at the start

    async def warm_up(self, num_workers: int) -> None:
        """Starts a first worker group, whose libraries load while the driver readies the inputs."""
        self._start(self.dispatcher.assignment.start_group(num_workers))

    async def serve(self, folder: str, inputs: WorkerSetup) -> None:
        """Serves trials and workers until `stop`.

        Ray repeats a call that was under way when an engine was lost, so that the new one is told the same.

        Args:
            folder: The search's folder below the store's root.
            inputs: For the workers.
        """
        self.notes.folder, self._inputs = folder, inputs
        try:
            self.spending.resume(self.notes)
            self._num_losses = self.notes.count_loss()
            if self._num_losses:
                self.reservations.watch()
            if self._num_losses > MAX_ENGINE_LOSSES:
                lost = f"the engine was lost {self._num_losses} times in a row"
                self.answers.broken = Failed(f"{lost}; its log in Ray's folder may say why")
            await self._write_notes()
            self._serving.set()
            noted_at = self._clock()
            while not self._closed:
                await asyncio.sleep(1)
                if self._clock() - noted_at > _NOTE_SECONDS:
                    await self._write_notes()
                    noted_at = self._clock()
                if self._asked:  # what is stored but needed by nobody is known from what is asked for
                    await self._keep_house()
        except Exception as error:  # whatever it is, those who wait are told
            self._serving.set()
            self.recovery.break_down(str(error))
            raise

    # For trials

    async def run(self, trial: str, process: str, root: str, segment: Segment) -> Answer:
        """The answer to a trial that asks for a segment, once it is finished or will not come.

        Args:
            trial: Who asks.
            process: Names the process that asks for it.
            root: Key of the lineage's root.
            segment: What it asks for.
        """
        await self._serving.wait()
        self._asked = True
        self._processes[trial] = process
        self.dispatcher.add_root(root)
        key = segment.key
        final = self.answers.final(key)
        if final is not None:
            return final
        result = self.known.results.get(key)
        if result is None:
            try:
                result = await self.known.find(key)
                if result is None:
                    await self.known.learn_ancestors(segment)
                    result = self.known.results.get(key)  # it may have been finished meanwhile
            except StorageError as error:
                self.answers.broken = Failed(str(error))
            if self.answers.broken is not None:
                return self.answers.broken
        cached = result is not None or key in self.dispatcher.book.orders
        if result is None:
            if self.answers.released is not None:
                return self.answers.released
            self.dispatcher.ask(self.known.with_shared_config(segment), trial)
            self._decide()
            outcome = await self.answers.wait(key)
            if not isinstance(outcome, Result):
                return outcome
            result = outcome
        self.spending.answered()
        self.cleaning.delete(self.dispatcher.give(segment, trial))
        ahead = {key: self.known.results[key].metrics for key in self.dispatcher.retention.tell_ahead(trial)}
        self._decide()
        return Finished(result.metrics, cached, ahead)

    async def checkpoint(self, trial: str, key: str) -> None:
        """Keeps the state that a trial's newest checkpoint points to."""
        self.cleaning.delete(self.dispatcher.retention.checkpoint(trial, key))

    async def prefetch(self, root: str, segments: list[Segment], branch_workers: int | None) -> None:
        """Trains segments, one after another, that every trial is going to ask for.

        Args:
            root: Key of their lineage's root.
            segments: In order.
            branch_workers: World size of what follows them, if it is known; groups for it are started in time.
        """
        for segment in segments:
            if segment.num_workers == branch_workers:  # wider ones leave no room beside them
                self._start_in_time(segments[-1].end_step - segment.start_step)
            if not isinstance(await self.run(_PREFETCH, _PREFETCH, root, segment), Finished):
                break  # the trials meet it too, and say so
        await self.end_trial(_PREFETCH, _PREFETCH, None)
        self.dispatcher.retention.forget_trial(_PREFETCH)

    async def end_trial(self, trial: str, process: str, last: str | None) -> None:
        """A process is done with a trial; Ray Tune may have started two for it, of which one has never asked.

        Args:
            trial: Which.
            process: Names the process.
            last: Key of the segment where the trial was.
        """
        if self._processes.get(trial) == process:
            del self._processes[trial]
            self.cleaning.delete(self.dispatcher.end_trial(trial, last))
            self._decide()

    # For workers

    async def join(self, group: str) -> tuple[WorkerSetup, int]:
        """Rank 0 of a started or restarted group reports. Returns the inputs and the number of its next order."""
        run = self.pool.join(group)
        order = self.dispatcher.assignment.order_of(group)
        if run.num_joins > 1 and order is not None:
            self.recovery.worker_lost(group, order)
        await self._serving.wait()
        self.dispatcher.assignment.up(group, self._clock())
        assert self._inputs is not None
        self._decide()
        return self._inputs, run.number

    async def next_order(self, group: str, number: int) -> WorkerOrder | None:
        """Order `number` of a group, once there is one; None when the group is to end."""
        order = await self.pool.wait_for_order(group, number)
        return None if order is None else WorkerOrder(order.segment, self.known.parent_state(order.segment))

    async def order_stands(self, group: str, number: int) -> bool:
        """Whether order `number` of a group is to be trained; an engine that was lost knows neither."""
        return self.pool.order_stands(group, number) is not None

    async def order_finished(self, group: str, number: int, outcome: SegmentOutcome) -> WorkerOrder | None:
        """Rank 0 of a group has trained and published its order. Returns the next one, as `next_order` does."""
        if self.pool.order_stands(group, number) is not None:
            segment = self.dispatcher.finish(group, self._clock()).segment
            self.spending.stored_bytes += outcome.state.num_bytes
            result = self.known.results[segment.key] = Result(outcome.metrics, outcome.state)
            self.totals.add(segment, outcome.timings)
            self.pool.finish_order(group)
            self.answers.give(segment.key, result)
            self._decide()
            if self._num_losses:
                self._num_losses = 0
                await self.notes.reset_losses()
        return await self.next_order(group, number + 1)

    async def order_failed(self, group: str, number: int, failure: OrderFailure) -> None:
        """A rank could not train order `number` of its group."""
        order = self.pool.order_stands(group, number)
        if order is not None:
            await self.recovery.order_failed(group, order, failure)
            self._decide()

    async def group_preempted(self, group: str, number: int) -> None:
        """A node of a group is about to be taken away; what it has trained of its order is stored."""
        order = self.pool.order_stands(group, number)
        if order is not None:
            place = f"{order.segment.stage} to step {order.segment.end_step}"
            self.notices.add(f"{group}: {place}: a node is taken away; another group goes on")
            self.dispatcher.take_back(group, self._clock())
            self.pool.finish_order(group)
            self._stop(group)
            self._decide()

    # For the driver, later on

    async def status(self) -> EngineStatus:
        """What is going on, for the live view and the summary."""
        groups = self.dispatcher.assignment.groups.values()
        training = tuple(
            InTraining(group.name, group.order.segment, len(group.order.waiters)) for group in groups if group.order
        )
        return EngineStatus(
            training=training,
            num_groups=len(self.pool.runs),
            num_starting=self.pool.num_starting(),
            num_queued=len(self.dispatcher.book.orders) - len(training),
            trained=dict(self.totals.by_stage),
            worker_seconds=self.pool.seconds_held(),
            notices=tuple(self.notices.lines),
            stopped_by=self.spending.stopped_by(bool(training)),
        )

    async def begin_again(self) -> None:
        """All trials have ended, and others will go through what they went through."""
        for trial in self._processes:
            self.dispatcher.end_trial(trial)
        self._processes.clear()
        self.dispatcher.retention.forget_all()
        self.cleaning.forget()

    async def release(self) -> None:
        """At a budget: nobody gets what is not trained yet, so those who wait for it need not."""
        if self.spending.used_up is not None:
            self.answers.release(Unfinished(self.spending.used_up))

    async def stop(self) -> None:
        """Ends all groups and waits until they have ended; those that only start end with this actor."""
        self._closed = True
        for name in self.pool.runs:
            self._stop(name)
        await self.pool.wait_for_ends()
        await self._write_notes()
        self.cleaning.delete()
        await asyncio.gather(*self._tasks, return_exceptions=True)  # `_report_failure` logs what fails

    # Inside

    def _decide(self, check_idle: bool = False) -> None:
        """Carries out what the dispatcher decides after everything that happens."""
        may_begin = not self._closed and self.spending.used_up is None
        for decision in self.dispatcher.decide(self._clock(), may_begin, check_idle):
            match decision:
                case TrainOrder(group) | StopGroup(group):
                    self.pool.runs[group].wake()
                case StartGroup():
                    self._start(decision)
                case DecideAgain(seconds) if self._decision_due is None:
                    self._decision_due = asyncio.get_running_loop().call_later(seconds, self._decide_again)

    def _decide_again(self) -> None:
        self._decision_due = None
        self._decide()

    def _start(self, group: StartGroup) -> None:
        run = self.pool.start(group)
        task = asyncio.ensure_future(self._run_to_end(run))
        self._group_tasks.add(task)
        task.add_done_callback(self._group_tasks.discard)
        task.add_done_callback(self._report_failure)

    def _stop(self, group: str) -> None:
        self.dispatcher.assignment.stop_group(group)
        self.pool.runs[group].wake()

    def _start_in_time(self, num_steps: int) -> None:
        """Starts the other groups when they will be up in so many steps, and no sooner."""
        joined, per_step = self.pool.joined(), self.totals.newest_seconds_per_step
        if self._closed or self.spending.used_up is not None or not joined or per_step is None:
            return
        if num_steps * per_step <= joined[0].startup_seconds:
            for _ in range(self._setup.groups.workers.max_groups - len(self.pool.runs)):
                self._start(self.dispatcher.assignment.start_group(joined[0].num_workers))

    async def _run_group(self, name: str, num_workers: int) -> str | None:
        """Runs a group to its end."""
        return await in_own_thread(run_group, name, num_workers, self._setup.groups)

    async def _run_to_end(self, run: Run) -> None:
        """Runs a group; when it has ended, its order goes back, or is given up."""
        error = await self.pool.run(run)
        if error is not None:
            self.notices.add(f"{run.name}: its Ray Train run ended: {error}")
            if run.joined_at is None:
                self.reservations.watch()
        given_up = self.dispatcher.end_group(run.name, error or "the worker group ended", self._clock())
        self.pool.remove(run)
        self.answers.give_up(given_up)
        if self.pool.cannot_start():
            self.recovery.give_up_waiting(f"worker groups cannot be started: {error}")
        self._decide()

    async def _keep_house(self) -> None:
        """What is due every second."""
        self._decide(check_idle=True)
        await self.spending.check(self._make_room, self.notices)
        self.cleaning.delete()
        if self.pool.num_starting():
            await self.reservations.give_back()

    async def _make_room(self) -> None:
        await self.cleaning.delete_spare(self._processes, self._setup.num_trials)

    async def _write_notes(self) -> None:
        await self.spending.write_down(self.notes)
        await self.cleaning.look_for_others(self.notes.folder)

    def _in_background(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Future[None]:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(self._report_failure)
        return task

    def _report_failure(self, task: asyncio.Future[Any]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self.notices.add(f"engine: {task.exception()}")


def start_engine(setup: EngineSetup) -> Any:
    """Starts the engine of a search as a named actor, which Ray restarts whenever it is lost; the engine counts.

    It runs on the head node: Ray Train starts its controllers on the engine's node, which must not be one that comes
    and goes. A soft affinity for the node does not suffice: under load Ray has placed engines elsewhere.
    """
    options = {"name": setup.groups.engine, "num_cpus": 0, "resources": {HEAD_NODE: 0.001}}
    limits = {"max_restarts": -1, "max_task_retries": -1, "max_concurrency": MAX_CALLS}
    return ray.remote(Engine).options(**options, **limits).remote(setup)
