"""The engine: one async actor per search that answers trials with finished segments.

A known segment is answered at once, one in flight is awaited by all who ask, anything else waits for a warm worker
group. Groups are Ray Train runs that start on demand and end when idle. The actor itself decides nothing: it brings
together the dispatcher (what to train where, and what to keep) and the parts that carry its decisions out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

from latentsync_ray.config.recipe import FIRST_STAGE
from latentsync_ray.core.segment import Segment
from latentsync_ray.engine.answers import Answers
from latentsync_ray.engine.background import Background
from latentsync_ray.engine.cleaning import Cleaning
from latentsync_ray.engine.decisions import DecideAgain, StartGroup, StopGroup, TrainOrder, near_steps
from latentsync_ray.engine.dispatcher import Dispatcher
from latentsync_ray.engine.groups import nodes_for, run_group
from latentsync_ray.engine.known import KnownSegments, Result
from latentsync_ray.engine.messages import (
    Answer,
    Branch,
    EngineSetup,
    EngineStatus,
    Failed,
    Finished,
    OrderFailure,
    Rank,
    SegmentOutcome,
    Unfinished,
    WorkerOrder,
    WorkerSetup,
)
from latentsync_ray.engine.nodes import Nodes
from latentsync_ray.engine.notes import SearchNotes
from latentsync_ray.engine.notices import Notices
from latentsync_ray.engine.pool import Run, WorkerPool, in_own_thread
from latentsync_ray.engine.recovery import Recovery
from latentsync_ray.engine.reservations import Reservations
from latentsync_ray.engine.spending import Spending
from latentsync_ray.engine.status import status_of
from latentsync_ray.engine.totals import Totals
from latentsync_ray.engine.watch import Watch
from latentsync_ray.store import StorageError, Store
from latentsync_ray.store.patience import Patience

_PREFETCH = "prefetch"
_NOTE_SECONDS = 5.0
"""How often it is written down what has been spent."""


class Engine:
    """Shares segments among trials; started with `start_engine`."""

    def __init__(self, setup: EngineSetup, clock: Callable[[], float] = time.monotonic):
        self.notices = Notices()
        patience = Patience(setup.groups.storage_retry_seconds, self.notices.add_once)
        workers, store = setup.groups.workers, Store(setup.groups.storage, patience)
        self.notes = SearchNotes(store, self.notices)
        self.dispatcher = Dispatcher(workers.max_groups, setup.keep_first_stage_from, workers.idle_seconds)
        self.answers = Answers()
        self.totals = Totals()
        self.known = KnownSegments(store, self.dispatcher, self.notices)
        self.pool = WorkerPool(self.dispatcher.assignment, self._run_group, clock)
        self.reservations = Reservations(workers, self.notices)
        self.nodes = Nodes(self._candidates, self.notices)
        self.recovery = Recovery(
            self.dispatcher, self.known, self.answers, self.pool, self.nodes, self.reservations, self.notices, clock
        )
        self.watch = Watch(self.pool, self.dispatcher.assignment, self.totals, workers, self.notices, clock)
        self.spending = Spending(setup.budget, store, self.pool.seconds_held, clock)
        self.background, self._groups = Background(self.notices), Background(self.notices)
        self.cleaning = Cleaning(store, self.dispatcher, self.known, self.spending, self.notices, self.background)
        self._setup, self._clock = setup, clock
        self._inputs: WorkerSetup | None = None
        self._num_trials = 0
        self._processes: dict[str, str] = {}
        """Trial that goes on -> the process that asks for it."""
        self._asked = self._closed = False
        self._serving = asyncio.Event()
        self._decision_due: asyncio.TimerHandle | None = None

    # For the driver, at the start

    async def warm_up(self, num_workers: int) -> None:
        """Starts a first worker group, whose libraries load while the driver readies the inputs."""
        self._start(self.dispatcher.assignment.start_group(num_workers))

    async def serve(self, folder: str, inputs: WorkerSetup, num_trials: int) -> None:
        """Serves trials and workers until `stop`.

        Ray repeats a call that was under way when an engine was lost, so that the new one is told the same.

        Args:
            folder: The search's folder below the store's root.
            inputs: For the workers.
            num_trials: How many there will be in all.
        """
        self._num_trials = num_trials
        self.notes.folder, self._inputs = folder, inputs
        try:
            self.spending.resume(self.notes)
            if num_losses := self.notes.count_loss():
                self.recovery.engine_lost(num_losses)
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

    async def run(
        self, trial: str, process: str, root: str, segment: Segment, branch: Branch | None = None
    ) -> Answer:
        """The answer to a trial that asks for a segment, once it is finished or will not come.

        Args:
            trial: Who asks.
            process: Names the process that asks for it.
            root: Key of the lineage's root.
            segment: What it asks for.
            branch: Where it may leave stage one, if it is known.
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
                result = await self.known.find_or_learn(segment)
            except StorageError as error:
                self.answers.broken = Failed(str(error))
            if self.answers.broken is not None:
                return self.answers.broken
        cached = result is not None or key in self.dispatcher.book.orders
        if result is None:
            if self.answers.released is not None:
                return self.answers.released
            self.dispatcher.ask(self.known.with_shared_config(segment), trial, branch)
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
        branch = None if branch_workers is None else Branch(segments[-1].end_step, branch_workers)
        for segment in segments:
            if segment.num_workers == branch_workers:  # wider ones leave no room beside them
                self._start_in_time(segments[-1].end_step - segment.start_step)
            if not isinstance(await self.run(_PREFETCH, _PREFETCH, root, segment, branch), Finished):
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
        if run.num_joins > 1:
            await self.recovery.workers_replaced(group)
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
            result = Result(outcome.metrics, outcome.state, outcome.environment)
            self.known.add(segment, result)
            self.totals.add(segment, outcome.timings, outcome.speed)
            self.cleaning.trained(segment.key)
            self.nodes.succeeded(self.watch.nodes(group))
            self.pool.finish_order(group)
            self.answers.give(segment.key, result)
            self._decide()
            await self.notes.reset_losses()
        return await self.next_order(group, number + 1)

    async def order_failed(self, group: str, number: int, failure: OrderFailure) -> None:
        """A rank could not train order `number` of its group."""
        order = self.pool.order_stands(group, number)
        if order is not None:
            await self.recovery.order_failed(group, order, failure)
            self._decide()

    async def notice(self, line: str) -> None:
        """A worker has something to tell the user."""
        self.notices.add_once(line)

    async def moved(self, group: str, rank: Rank) -> None:
        """A rank tells that it moves, every few seconds."""
        self.watch.moved(group, rank)

    async def group_preempted(self, group: str, number: int) -> None:
        """A node of a group is about to be taken away; what it has trained of its order is stored."""
        order = self.pool.order_stands(group, number)
        if order is not None:
            self.recovery.node_taken_away(group, order)
            self._stop(group)
            self._decide()

    # For the driver, later on

    async def status(self) -> EngineStatus:
        """What is going on, for the live view and the summary."""
        return status_of(self.dispatcher, self.pool, self.totals, self.spending, self.notices)

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
        await self.background.wait()

    # Inside

    def _decide(self, check_idle: bool = False) -> None:
        """Carries out what the dispatcher decides after everything that happens."""
        idle_seconds, step_seconds = self._setup.groups.workers.idle_seconds, self.totals.step_seconds(FIRST_STAGE)
        near = near_steps(idle_seconds, self.pool.startup_seconds, step_seconds) if check_idle else 0.0
        for decision in self.dispatcher.decide(self._clock(), self._may_begin(), check_idle, near):
            match decision:
                case TrainOrder(group) | StopGroup(group):
                    self.pool.runs[group].wake()
                case StartGroup():
                    self._start(decision)
                case DecideAgain(seconds) if self._decision_due is None:
                    self._decision_due = asyncio.get_running_loop().call_later(seconds, self._decide_again)

    def _may_begin(self) -> bool:
        return not self._closed and self.spending.used_up is None

    def _decide_again(self) -> None:
        self._decision_due = None
        self._decide()

    def _start(self, group: StartGroup) -> None:
        self._groups.start(self._run_to_end(self.pool.start(group)))

    def _stop(self, group: str) -> None:
        self.dispatcher.assignment.stop_group(group)
        self.pool.runs[group].wake()

    def _start_in_time(self, num_steps: int) -> None:
        """Starts the other groups when they will be up in so many steps, and no sooner."""
        first = self.pool.startup_is_due(num_steps, self.totals.newest_seconds_per_step)
        if first is not None and self._may_begin():
            for group in self.dispatcher.assignment.start_all(first.num_workers):
                self._start(group)

    def _candidates(self) -> set[str]:
        """Ids of the nodes that could hold a worker."""
        return nodes_for(self._setup.groups.workers)

    async def _run_group(self, name: str, num_workers: int) -> str | None:
        """Runs a group to its end."""
        return await in_own_thread(run_group, name, num_workers, self._setup.groups, self.nodes.to_avoid())

    async def _run_to_end(self, run: Run) -> None:
        """Runs a group; when it has ended, its order goes back, or is given up."""
        await self.recovery.group_ended(run, await self.pool.run(run))
        self._decide()

    async def _keep_house(self) -> None:
        """What is due every second."""
        self._decide(check_idle=True)
        await self.watch.end_stalled()
        make_room = partial(self.cleaning.delete_spare, self._processes, self._num_trials)
        await self.spending.check(make_room, self.notices)
        self.cleaning.delete()
        if self.pool.num_starting():
            await self.reservations.give_back()

    async def _write_notes(self) -> None:
        await self.spending.write_down(self.notes)
        await self.cleaning.look_for_others(self.notes.folder)
