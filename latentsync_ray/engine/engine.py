"""The engine: one async actor per search that answers trials with finished segments.

A known segment is answered at once, one in flight is awaited by all who ask, anything else waits for a warm worker
group. Groups are Ray Train runs that start on demand and go back when idle.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import ray

from latentsync_ray.config.search import BudgetConfig
from latentsync_ray.core.segment import Segment
from latentsync_ray.engine.budget import Spent, exceeded, read_spent
from latentsync_ray.engine.dispatcher import LINGER_SECONDS, YIELD_SECONDS, Dispatcher, Order
from latentsync_ray.engine.groups import NoDashboardError, empty_places, remove_places, run_group
from latentsync_ray.engine.messages import GroupSetup, SegmentOutcome, WorkerOrder, WorkerSetup
from latentsync_ray.store import SPENT_FILE, DamagedEntryError, StorageError, Store
from latentsync_ray.store.upkeep import others_running, states_of_others

logger = logging.getLogger(__name__)

MAX_FAILED_STARTS = 3
"""After so many groups in a row that end before their workers report, those who wait are told."""
MAX_CALLS = 100_000
"""Calls that the engine has open at once; every trial that waits is one, and its workers must get through to it."""
_PREFETCH = "prefetch"
_QUIET_SECONDS = 5.0
"""At a budget, trials that have been given nothing for so long have no more to find in the store."""
_NOTE_SECONDS = 5.0
"""How often it is written down what has been spent."""
_HEAD = "node:__internal_head__"
"""Resource that only Ray's head node has, for what has to run there."""
Fault = Literal["error", "diverged", "storage"]
MAX_ENGINE_LOSSES = 3
"""So often in a row, with no segment finished in between, the engine may be lost before those who ask are told."""


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


@dataclass
class _Run:
    """A worker group, as far as Ray goes."""

    name: str
    num_workers: int
    number: int = 0
    """Number of its first unfinished order; every rank asks by number, so ranks agree."""
    order: Order | None = None
    started_at: float = field(default_factory=time.monotonic)
    joined_at: float | None = None
    joins: int = 0
    restarting: bool = False
    """Its workers have reported an error and will be started anew."""
    stopping: bool = False
    last_busy: float = field(default_factory=time.monotonic)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set, and replaced by another, whenever something changes of what its ranks wait for."""

    def wake(self) -> None:
        """Has its ranks look again."""
        self.changed.set()
        self.changed = asyncio.Event()

    def holds(self, number: int) -> bool:
        """Whether order `number` is there; a rank may ask for it while another still reports the one before."""
        return self.number == number and self.order is not None


class Engine:
    """Shares segments among trials; to be made with `start_engine`."""

    def __init__(self, setup: EngineSetup):
        self._setup = setup
        self._store = Store(setup.groups.storage)
        self._dispatcher = Dispatcher(setup.groups.workers.max_groups, setup.keep_first_stage_from)
        self._records: dict[str, dict[str, Any]] = {}
        self._answers: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._actors: dict[str, str] = {}
        self._errors: dict[str, dict[str, Any]] = {}
        self._broken: str | None = None
        self._runs: dict[str, _Run] = {}
        self._num_groups = 0
        self._failed_starts = 0
        self._may_be_empty: set[str] | None = None
        """Placement groups without a worker when last looked for; None as long as no group has failed to start."""
        self._trained: dict[str, dict[str, float]] = {}
        self._seconds_per_step: float | None = None
        self._poke_due: asyncio.TimerHandle | None = None
        self._notices: list[str] = []
        self._worker_seconds = 0.0
        self._started_at = self._answered_at = self._noted_at = time.monotonic()
        self._spent_before = Spent()
        self._stored_bytes = 0 if setup.budget.storage_gb is None else self._store.state_bytes()
        self._in_flight: set[asyncio.Future[Any]] = set()
        """What runs in the background; asyncio itself forgets a task that nobody refers to."""
        self._to_drop: set[str] = set()
        """Keys whose states the trials of this search have passed."""
        self._dropping: asyncio.Future[Any] | None = None
        self._may_drop = False
        """Whether no other search runs in this store, which may need any state in it."""
        self._of_others: set[str] = set()
        """Keys of states that other searches refer to, which have ended."""
        self._num_losses = 0
        self._used_up: str | None = None
        self._released = False
        self._closed = False
        self._folder = ""
        self._inputs: WorkerSetup | None = None
        self._serving = asyncio.Event()
        self._asked = False

    # For the driver, at the start

    async def warm_up(self, num_workers: int) -> None:
        """Starts a first worker group, whose libraries load while the driver readies the inputs."""
        self._start(num_workers)

    async def serve(self, folder: str, inputs: WorkerSetup) -> None:
        """Serves trials and workers until `stop`.

        Ray repeats a call that was under way when an engine was lost, so one that it starts anew is told the same.

        Args:
            folder: The search's folder below the store's root.
            inputs: For the workers.
        """
        self._folder, self._inputs = folder, inputs
        try:
            self._spent_before = read_spent(self._store, folder)
            self._num_losses = self._count_loss()
            self._may_be_empty = set() if self._num_losses else None
            if self._num_losses > MAX_ENGINE_LOSSES:
                lost = f"the engine was lost {self._num_losses} times in a row"
                self._broken = f"{lost}; its log in Ray's folder may say why"
            await self._note_spent()
            await self._look_for_others()
            self._serving.set()
            while not self._closed:
                await asyncio.sleep(1)
                if time.monotonic() - self._noted_at > _NOTE_SECONDS:
                    await self._note_spent()
                    await self._look_for_others()
                if self._asked:  # what is stored but needed by nobody is known from what is asked for
                    await self._keep_house()
        except Exception as error:  # whatever it is, those who wait are told
            self._broken = str(error)
            self._serving.set()
            self._give_up_waiting(self._broken)
            raise

    # For trials

    async def run(self, trial: str, actor: str, root: str, values: dict[str, Any]) -> dict[str, Any]:
        """The finished segment that a trial asks for.

        Args:
            trial: Who asks.
            actor: Names the process that asks for it.
            root: Key of the lineage's root.
            values: The segment, as `Segment.to_dict` gives it.

        Returns:
            `key`, `metrics`, `cached` (whether it was found or shared) and `ahead`, the metrics, by key, of finished
            segments for which the trial need not ask; or `error`, one line, and `diverged`; or `unfinished`, one
            line, if a budget is used up.
        """
        await self._serving.wait()
        self._asked = True
        self._actors[trial] = actor
        self._dispatcher.add_root(root)
        segment = self._segment(values)
        key = segment.key
        if key in self._errors:
            return self._errors[key]
        record = None if self._broken else await self._record(key)
        if self._broken is not None:
            return {"error": self._broken, "diverged": False}
        if record is None:
            await self._learn_ancestors(segment)
            record = self._records.get(key)  # it may have been finished meanwhile
        cached = record is not None or key in self._dispatcher.orders
        if record is None and self._released:
            return {"unfinished": self._used_up}
        if record is None:
            answer = self._answers.setdefault(key, asyncio.get_running_loop().create_future())
            self._dispatcher.ask(segment, trial)
            await self._poke()
            outcome = await asyncio.shield(answer)
            if "error" in outcome or "unfinished" in outcome:
                return outcome
            record = outcome
        self._answered_at = time.monotonic()
        self._forget(self._dispatcher.give(segment, trial))
        ahead = {key: self._records[key]["metrics"] for key in self._dispatcher.tell_ahead(trial)}
        await self._poke()
        return {"key": key, "metrics": record["metrics"], "cached": cached, "ahead": ahead}

    async def hold(self, trial: str, key: str) -> None:
        """Keeps the state that a trial's newest checkpoint points to."""
        self._forget(self._dispatcher.hold(trial, key))

    async def prefetch(self, root: str, segments: list[dict[str, Any]], branch_workers: int | None) -> None:
        """Trains segments, one after another, that every trial is going to ask for.

        Args:
            root: Key of their lineage's root.
            segments: As `Segment.to_dict` gives them.
            branch_workers: World size of what follows them, if it is known; groups for it are started in time.
        """
        for values in segments:
            if values["config"]["num_workers"] == branch_workers:  # wider ones leave no room beside them
                self._start_in_time(values["start_step"], segments[-1]["end_step"])
            if "metrics" not in await self.run(_PREFETCH, _PREFETCH, root, values):
                break  # the trials meet it too, and say so
        await self.leave(_PREFETCH, _PREFETCH, None)
        self._dispatcher.forget(_PREFETCH)

    def _start_in_time(self, global_step: int, branching_step: int) -> None:
        """Starts the other groups when they will be up at the step from which trials differ, and no sooner."""
        joined = self._joined()
        if self._closed or self._used_up or not joined or self._seconds_per_step is None:
            return
        startup_seconds = (joined[0].joined_at or 0.0) - joined[0].started_at
        if (branching_step - global_step) * self._seconds_per_step <= startup_seconds:
            for _ in range(self._setup.groups.workers.max_groups - len(self._runs)):
                self._start(joined[0].num_workers)

    def _joined(self) -> list[_Run]:
        return [run for run in self._runs.values() if run.joined_at is not None]

    async def leave(self, trial: str, actor: str, last: str | None) -> None:
        """A process is done with a trial; Ray Tune may have started two for it, of which one has never asked.

        Args:
            trial: Which.
            actor: Names the process.
            last: Key of the segment where the trial was.
        """
        if self._actors.get(trial) == actor:
            del self._actors[trial]
            self._forget(self._dispatcher.leave(trial, last))
            await self._poke()

    async def _record(self, key: str) -> dict[str, Any] | None:
        """A segment's record from memory or the store; a damaged one counts as absent."""
        if key not in self._records:
            try:
                record = await asyncio.to_thread(self._store.read_record, key)
            except DamagedEntryError as error:
                self._notice(f"{error}; it will be trained again")
                return None
            except StorageError as error:
                self._broken = str(error)
                return None
            if record is not None and key not in self._records:
                self._remember(key, record)
                self._dispatcher.add_done(self._segment(record["segment"]), record["state"]["status"] == "kept")
        return self._records.get(key)  # a worker may have published it while the store was read

    def _segment(self, values: dict[str, Any]) -> Segment:
        """A segment that shares its settings with its parent: 8 kB for each of 100,000 would be too much."""
        parent = self._dispatcher.done.get(values["parent"])
        if parent is not None and parent.config == values["config"]:
            values = {**values, "config": parent.config}
        return Segment(**values)

    def _remember(self, key: str, record: Mapping[str, Any]) -> None:
        """Keeps what will be asked for again; the losses of every step stay in the store alone."""
        self._records[key] = {name: record[name] for name in ("metrics", "state")}

    async def _learn_ancestors(self, segment: Segment) -> None:
        """Tells the dispatcher of stored ancestors, back to one whose state is kept."""
        while (missing := self._dispatcher.missing_ancestor(segment)) is not None:
            if await self._record(missing) is None:
                # The trial holds the ancestors' metrics but their records are gone: only a fresh walk can mend that.
                raise DamagedEntryError(f"segment {missing}: its record is gone; run the same command again")

    # For workers

    async def join(self, group: str) -> tuple[WorkerSetup, int]:
        """Rank 0 of a started or restarted group reports. Returns the inputs and the number of its next order."""
        run = self._runs[group]
        run.joins += 1
        run.last_busy = time.monotonic()
        run.joined_at = run.joined_at or run.last_busy
        self._failed_starts = 0
        if run.joins > 1 and not run.restarting and run.order is not None:
            self._failed(run, "a worker was lost", lost=True)
        run.restarting = False
        await self._serving.wait()
        run.last_busy = time.monotonic()
        assert self._inputs is not None
        await self._poke()
        return self._inputs, run.number

    async def next_order(self, group: str, number: int) -> WorkerOrder | None:
        """Order `number` of a group, once there is one; None when the group is to end."""
        run = self._runs[group]
        while not (run.stopping or run.number > number or run.holds(number)):
            await run.changed.wait()
        if run.stopping or not run.holds(number):
            return None
        assert run.order is not None
        parent = self._records.get(run.order.segment.parent)
        return {
            "segment": run.order.segment.to_dict(),
            "parent_state": parent and parent["state"],
            "parent_stage": self._dispatcher.done[run.order.segment.parent].stage if parent else "",
        }

    async def holds(self, group: str, number: int) -> bool:
        """Whether order `number` of a group stands; an engine that was lost knows neither it nor the group."""
        return group in self._runs and self._runs[group].holds(number)

    async def finished(self, group: str, number: int, outcome: SegmentOutcome) -> WorkerOrder | None:
        """Rank 0 of a group has trained and published its order. Returns the next one, as `next_order` does."""
        run = self._runs[group]
        if run.number == number and run.order is not None:
            order = self._dispatcher.finish(group, time.monotonic())
            self._stored_bytes += outcome["state"]["bytes"]
            self._remember(order.segment.key, outcome)
            self._count(order.segment, outcome["timings"])
            self._next(run)
            self._answer(order.segment.key, self._records[order.segment.key])
            await self._poke()
            if self._num_losses:
                self._num_losses = 0
                await self._note("engine_losses.json", {"losses": 0})
        return await self.next_order(group, number + 1)

    async def failed(
        self, group: str, number: int, error: str, fault: Fault, restarting: bool, lost_parent: str | None
    ) -> None:
        """A rank could not train its order.

        Args:
            group: Its group.
            number: The order's number.
            error: One line.
            fault: What kind of error; when the storage cannot be written, nobody can be helped any more.
            restarting: The ranks end, to be started anew by Ray Train.
            lost_parent: Key of the parent, if its stored state is damaged or gone.
        """
        run = self._runs[group]
        if run.number != number or run.order is None:
            return
        run.restarting, run.order.diverged = restarting, fault == "diverged"
        if fault == "storage":
            self._broken = error
        if lost_parent is None:
            self._failed(run, error)
        else:
            await self._without_parent(run, run.order, lost_parent, error)
        if self._broken is not None:
            self._give_up_waiting(self._broken)
        await self._poke()

    async def _without_parent(self, run: _Run, order: Order, parent: str, error: str) -> None:
        """Has a lost state trained again, unless what was to follow from it is there by now.

        Another search drops a state when its trials have passed it, so it has the segment that follows.
        """
        key = order.segment.key
        known = key in self._records
        record = await self._record(key)
        if order.group != run.name or self._dispatcher.orders.get(key) is not order:
            return  # it has ended meanwhile
        self._records[parent]["state"]["status"] = "dropped"
        if record is not None and not (known and record["state"]["status"] == "dropped"):
            self._dispatcher.relieve(run.name, parent)
            self._answer(key, record)
        else:
            self._notice(f"{error}; it will be trained again")
            given_up = self._dispatcher.state_lost(run.name, parent, error)
            if given_up is not None:
                self._give_up(given_up)
        self._next(run)
        await self._order_again()

    async def _order_again(self) -> None:
        """Orders what trials wait for once more, with the ancestors that have to be trained again for it."""
        for order in list(self._dispatcher.orders.values()):
            error = None
            try:
                await self._learn_ancestors(order.segment)
            except DamagedEntryError as damage:
                error = str(damage)
            if self._dispatcher.orders.get(order.segment.key) is not order:
                continue  # it has ended meanwhile
            if error is None:
                for trial in list(order.waiters):
                    self._dispatcher.ask(order.segment, trial)
            elif order.group is None:
                order.errors.append(error)
                self._give_up(self._dispatcher.withdraw(order.segment.key))

    async def leaves(self, group: str, number: int) -> None:
        """A group leaves a node that is about to be taken away; what it has trained of its order is stored."""
        run = self._runs[group]
        if run.number != number or run.order is None:
            return
        segment = run.order.segment
        self._notice(
            f"{group}: {segment.stage} to step {segment.end_step}: a node is taken away; another group goes on"
        )
        self._dispatcher.take_back(group)
        self._next(run)
        self._retire(run)
        await self._poke()

    # For the driver, later on

    async def status(self) -> dict[str, Any]:
        """What is going on, for the live view and the summary."""
        quiet = time.monotonic() - self._answered_at > _QUIET_SECONDS
        training = any(run.order is not None for run in self._runs.values())
        return {
            "training": [
                {"group": run.name, "waiters": len(run.order.waiters), **run.order.segment.to_dict()}
                for run in self._runs.values()
                if run.order is not None
            ],
            "num_groups": len(self._runs),
            "num_starting": sum(run.joined_at is None for run in self._runs.values()),
            "num_queued": sum(order.group is None for order in self._dispatcher.orders.values()),
            "trained": {stage: dict(totals) for stage, totals in self._trained.items()},
            "worker_seconds": self._seconds_held(),
            "notices": list(self._notices),
            "stopped_by": self._used_up if quiet and not training else None,
        }

    async def begin_again(self) -> None:
        """All trials have ended, and others will go through what they went through."""
        for trial in self._actors:
            self._dispatcher.leave(trial)
        self._actors.clear()
        self._dispatcher.forget_all()
        self._to_drop.clear()

    async def release(self) -> None:
        """At a budget: nobody gets what is not trained yet, so those who wait for it need not."""
        self._released = True
        for key in list(self._answers):
            self._answer(key, {"unfinished": self._used_up})

    async def stop(self) -> None:
        """Gives all groups back and waits for their ends; those that only start end with this actor."""
        self._closed = True
        for run in self._runs.values():
            self._retire(run)
        for run in self._joined():
            while run.name in self._runs:
                await run.changed.wait()
        await self._note_spent()
        await self._look_for_others()
        self._forget([])
        await asyncio.gather(*self._in_flight, return_exceptions=True)  # `_report_failure` logs what fails

    # Inside

    async def _poke(self) -> None:
        """Hands out what can be handed out, starts and stops groups, and wakes who waits."""
        now = time.monotonic()
        lingering = False
        runs = self._runs.values() if self._dispatcher.any_ready() and not self._used_up else []
        for run in sorted((run for run in runs if run.order is None), key=lambda run: run.name):
            if run.joined_at is not None and not run.restarting and not run.stopping:
                run.order = self._dispatcher.assign(run.name, now)
                lingering = lingering or run.order is None
                run.wake()
        for num_workers in [] if self._closed or self._used_up else self._dispatcher.groups_to_start():
            self._start(num_workers)
        in_the_way = self._dispatcher.group_to_stop()
        if in_the_way is not None:
            self._retire(self._runs[in_the_way])
        if lingering and self._dispatcher.any_ready() and self._poke_due is None:
            self._poke_due = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._poke_again)

    def _poke_again(self) -> None:
        self._poke_due = None
        self._in_background(self._poke())

    async def _keep_house(self) -> None:
        """Gives back groups that have had nothing to do for a while, or will have nothing to do any more."""
        now = time.monotonic()
        for run in self._joined():
            patience = self._setup.groups.workers.idle_seconds
            if self._dispatcher.others_wait(run.num_workers):
                patience = min(patience, YIELD_SECONDS)
            idle = run.order is None and not run.stopping
            if idle and (self._used_up or now - run.last_busy > patience):
                self._retire(run)
        await self._keep_budget()
        self._forget([])
        await self._keep_places()

    async def _keep_places(self) -> None:
        """Gives back what lost groups have reserved, which may be all that one that starts now waits for."""
        if self._may_be_empty is None or not any(run.joined_at is None for run in self._runs.values()):
            return
        try:
            empty = await asyncio.to_thread(empty_places, self._setup.groups.workers)
        except NoDashboardError as error:
            self._notice(f"what lost groups have reserved cannot be given back: {error}")
            self._may_be_empty = None
            return
        # A group's workers are there a moment after its place.
        await asyncio.to_thread(remove_places, empty & self._may_be_empty)
        self._may_be_empty = empty

    async def _keep_budget(self) -> None:
        """Lets nothing new begin once a budget is used up."""
        used_up = exceeded(self._setup.budget, self._spent(), self._stored_bytes)
        if used_up and used_up.startswith("budget.storage_gb") and self._may_drop:
            spare = self._dispatcher.spare_states(self._actors, self._setup.num_trials)
            for key in [key for key in spare if key not in self._of_others]:
                await self._drop(key)
            used_up = exceeded(self._setup.budget, self._spent(), self._stored_bytes)
        if used_up and not self._used_up:
            self._notice(f"{used_up}; segments in flight are finished, nothing new is begun")
            self._used_up = used_up

    def _count_loss(self) -> int:
        """How often this engine was lost since a segment was finished; kept in the store, as its memory was lost."""
        context = ray.get_runtime_context() if ray.is_initialized() else None
        if context is None or context.get_actor_id() is None or not context.was_current_actor_reconstructed:
            return 0
        file = f"{self._folder}/engine_losses.json"
        try:
            noted = self._store.read_json(file)
        except DamagedEntryError as error:
            self._notice(f"{error}; losses are counted from 0")
            noted = None
        losses = 1 + (int(noted["losses"]) if noted else 0)
        self._store.write_json(file, {"losses": losses})
        return losses

    def _spent(self) -> Spent:
        before = self._spent_before
        return Spent(
            before.worker_seconds + self._seconds_held(),
            before.wall_seconds + time.monotonic() - self._started_at,
        )

    async def _note_spent(self) -> None:
        self._noted_at = time.monotonic()
        await self._note(SPENT_FILE, asdict(self._spent()))

    async def _note(self, name: str, values: Any) -> None:
        """Writes a small file of the search; where that fails, workers meet it too, and end the search."""
        try:
            await asyncio.to_thread(self._store.write_json, f"{self._folder}/{name}", values)
        except StorageError as error:
            self._notice_once(str(error))

    async def _look_for_others(self) -> None:
        """Learns what is not to be dropped: all while another search runs in the store, then what it refers to."""
        may_drop = False
        try:
            if not await asyncio.to_thread(others_running, self._store, self._folder):
                if not self._may_drop:  # some have ended, or nothing is known yet
                    self._of_others = await asyncio.to_thread(states_of_others, self._store, self._folder)
                may_drop = True
        except StorageError as error:
            self._notice_once(str(error))
        except DamagedEntryError as error:
            remedy = "run the command of that search again, or delete its folder"
            self._notice_once(f"{error}, so any state may be needed and none is dropped; {remedy}")
        self._may_drop = may_drop

    def _seconds_held(self) -> float:
        """Seconds of worker processes, those that run now included."""
        now = time.monotonic()
        held = ((now - run.joined_at) * run.num_workers for run in self._runs.values() if run.joined_at)
        return self._worker_seconds + sum(held)

    def _start(self, num_workers: int) -> None:
        self._num_groups += 1
        run = _Run(f"group-{self._num_groups}", num_workers)
        self._runs[run.name] = run
        self._dispatcher.add_group(run.name, num_workers)
        threading.Thread(target=self._fit, args=(run, asyncio.get_running_loop()), daemon=True).start()

    def _fit(self, run: _Run, loop: asyncio.AbstractEventLoop) -> None:
        """Runs a group to its end, in a thread of its own."""
        error = run_group(run.name, run.num_workers, self._setup.groups)
        asyncio.run_coroutine_threadsafe(self._ended(run, error), loop)

    async def _ended(self, run: _Run, error: str | None) -> None:
        """A group has ended: its order goes back, or is given up."""
        if run.joined_at is not None:
            self._worker_seconds += (time.monotonic() - run.joined_at) * run.num_workers
        if error is not None:
            self._notice(f"{run.name}: its Ray Train run ended: {error}")
            if run.joined_at is None:
                self._failed_starts += 1
                self._may_be_empty = self._may_be_empty or set()
        given_up = self._dispatcher.remove_group(run.name, error or "the worker group ended")
        del self._runs[run.name]
        run.wake()
        if given_up is not None:
            self._give_up(given_up)
        if self._failed_starts >= MAX_FAILED_STARTS:
            self._failed_starts = 0
            self._give_up_waiting(f"worker groups cannot be started: {error}")
        await self._poke()

    def _failed(self, run: _Run, error: str, lost: bool = False) -> None:
        assert run.order is not None
        segment, waiting = run.order.segment, sorted(run.order.waiters)
        who = f" for {waiting[0]}" + (f" and {len(waiting) - 1} more" if waiting[1:] else "") if waiting else ""
        self._notice_once(f"{run.name}: {segment.stage} to step {segment.end_step}{who}: {error}")
        given_up = self._dispatcher.fail(run.name, error, lost)
        if given_up is not None:
            self._give_up(given_up)
        self._next(run)

    def _count(self, segment: Segment, timings: dict[str, float]) -> None:
        """Adds a trained segment to its stage's totals."""
        totals = self._trained.setdefault(segment.stage, {})
        for name, value in {"num_steps": segment.num_steps, **timings}.items():
            totals[name] = totals.get(name, 0) + value
        self._seconds_per_step = (timings["train_seconds"] + timings["validate_seconds"]) / segment.num_steps

    def _next(self, run: _Run) -> None:
        run.number += 1
        run.order = None
        run.last_busy = time.monotonic()
        run.wake()

    def _retire(self, run: _Run) -> None:
        run.stopping = True
        run.wake()

    def _give_up_waiting(self, error: str) -> None:
        """Tells all whose segments nobody trains now that these will not come."""
        for order in list(self._dispatcher.orders.values()):
            if order.group is None and order.segment.key in self._dispatcher.orders:
                order.errors.append(error)
                self._give_up(self._dispatcher.withdraw(order.segment.key))

    def _give_up(self, order: Order) -> None:
        segment = order.segment
        message = f"{segment.stage} from step {segment.start_step} to {segment.end_step}: {order.errors[-1]}"
        self._errors[segment.key] = {"error": message, "diverged": order.diverged}
        self._answer(segment.key, self._errors[segment.key])
        # Descendants that wait for a state which will not come fail with it.
        for other in self._dispatcher.waiting_for(segment.key):
            other.errors.append(order.errors[-1])
            other.diverged = order.diverged
            self._give_up(self._dispatcher.withdraw(other.segment.key))

    def _answer(self, key: str, outcome: dict[str, Any]) -> None:
        answer = self._answers.pop(key, None)
        if answer is not None:
            answer.set_result(outcome)

    def _forget(self, unneeded: list[str]) -> None:
        self._to_drop.update(unneeded)
        idle = self._dropping is None or self._dropping.done()
        if idle and self._to_drop and self._may_drop:
            self._dropping = self._in_background(self._drop_unneeded())

    async def _drop_unneeded(self) -> None:
        """Drops what trials have passed, one after another, as long as no other search may need it."""
        while self._to_drop and self._may_drop:
            key = self._to_drop.pop()
            if self._dispatcher.unneeded(key) and key not in self._of_others:
                await self._drop(key)

    async def _drop(self, key: str) -> None:
        self._dispatcher.dropped([key])
        self._records[key]["state"]["status"] = "dropped"
        self._stored_bytes -= self._records[key]["state"]["bytes"]
        await asyncio.to_thread(self._store.drop_state, key)

    def _in_background(self, coroutine: Any) -> asyncio.Future[Any]:
        task: asyncio.Future[Any] = asyncio.ensure_future(coroutine)
        self._in_flight.add(task)
        task.add_done_callback(self._in_flight.discard)
        task.add_done_callback(self._report_failure)
        return task

    def _report_failure(self, task: asyncio.Future[Any]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._notice(f"engine: {task.exception()}")

    def _notice_once(self, line: str) -> None:
        if line not in self._notices:
            self._notice(line)

    def _notice(self, line: str) -> None:
        logger.warning(line)
        self._notices.append(line)


def start_engine(setup: EngineSetup) -> Any:
    """Starts the engine of a search as a named actor, which Ray restarts whenever it is lost; the engine counts.

    It runs on the head node: Ray Train starts its controllers on the engine's node, which must not be one that comes
    and goes. A soft affinity for the node does not suffice: under load Ray has placed engines elsewhere.
    """
    options = {"name": setup.groups.engine, "num_cpus": 0, "resources": {_HEAD: 0.001}}
    limits = {"max_restarts": -1, "max_task_retries": -1, "max_concurrency": MAX_CALLS}
    return ray.remote(Engine).options(**options, **limits).remote(setup)
