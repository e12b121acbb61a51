"""`make bench-scale`: segments a second that the dispatcher and the engine bear, and whether more trials slow them.

Nothing is trained: a trivial executor stands in for the worker groups. A trial walks 2 segments that all have in
common and 10 of its own, so 10,000 trials make 100,002 segments, which are new once; then as many trials again walk
the same ones, which are known by now. Timed are: the dispatcher alone, in CPU seconds; the engine, with coroutines of
its own process in the place of trials and workers; the engine as an actor, asked by this process in the place of
trials; and, for fewer trials, the same with processes in the place of worker groups. Most of the actor's time is
Ray's, so that calls of the same size which do nothing are timed beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import resource
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

# As the search has it: processes that train nothing keep their view of the accelerators.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from rich.console import Console
from rich.table import Table

from latentsync_ray.config.recipe import FIRST_STAGE, SECOND_STAGE
from latentsync_ray.config.search import BudgetConfig, WorkersConfig
from latentsync_ray.config.searchfiles import load_search
from latentsync_ray.core.record import StoredState, Timings
from latentsync_ray.core.segment import Segment
from latentsync_ray.core.trial_recipe import TrialRecipe
from latentsync_ray.engine.decisions import StartGroup, StopGroup
from latentsync_ray.engine.dispatcher import Dispatcher
from latentsync_ray.engine.engine import Engine
from latentsync_ray.engine.messages import (
    EngineSetup,
    Finished,
    GroupSetup,
    SegmentOutcome,
    WorkerOrder,
    WorkerSetup,
)
from latentsync_ray.engine.start import MAX_CALLS

SHARED, OWN = 2, 10
NUM_GROUPS = 8
NUM_AT_ONCE = 200
METRICS = {f"val/{name}": 0.0 for name in ("recon", "sync", "lpips", "trepa", "sync_confidence")}
SETTINGS = {"num_workers": 1, "optimizer": {"lr": 1e-5}}


def walk(trial: int, settings: Mapping[str, Any]) -> Iterator[Segment]:
    """A trial's segments; each follows the one before, so its key is made on the way."""
    parent, own_settings = "root", {**settings, "optimizer": {"lr": trial}}
    for number in range(SHARED + OWN):
        if number < SHARED:
            segment = Segment(parent, FIRST_STAGE, settings, number, 0, number + 1)
        else:
            segment = Segment(parent, SECOND_STAGE, own_settings, number, SHARED, number + 1)
        yield segment
        parent = segment.key


class InProcess:
    """The dispatcher with groups that need no time, driven as the engine drives it."""

    def __init__(self) -> None:
        self.dispatcher = Dispatcher(NUM_GROUPS)
        self.dispatcher.add_root("root")
        self.now = 0.0
        self.num_trained = self.num_given = 0

    def new(self, num_trials: int) -> float:
        """Trials ask, groups train, until all have walked to their ends. Returns CPU seconds."""
        walks = {f"new-{trial}": walk(trial, SETTINGS) for trial in range(num_trials)}
        started = time.process_time()
        waiting: dict[str, list[str]] = defaultdict(list)
        for trial in walks:
            self._advance(trial, walks, waiting)
        while waiting:
            self.now += 1.0
            groups = self.dispatcher.assignment.groups.values()
            for group in [group.name for group in groups if group.order is not None]:
                segment = self.dispatcher.finish(group, self.now).segment
                self.num_trained += 1
                self._hand_out()
                for trial in waiting.pop(segment.key):
                    self._give(segment, trial)
                    self._advance(trial, walks, waiting)
        return time.process_time() - started

    def known(self, num_trials: int) -> float:
        """As many trials again find everything. Returns CPU seconds."""
        started = time.process_time()
        for trial in range(num_trials):
            for segment in walk(trial, SETTINGS):
                assert segment.key in self.dispatcher.states.done
                self._give(segment, f"known-{trial}")
        return time.process_time() - started

    def _advance(self, trial: str, walks: dict[str, Iterator[Segment]], waiting: dict[str, list[str]]) -> None:
        """A trial asks for its next segment, or ends."""
        segment = next(walks[trial], None)
        if segment is None:
            self.dispatcher.end_trial(trial)
        else:
            assert self.dispatcher.book.missing_ancestor(segment) is None
            self.dispatcher.ask(segment, trial)
            waiting[segment.key].append(trial)
        self._hand_out()

    def _give(self, segment: Segment, trial: str) -> None:
        self.dispatcher.drop(self.dispatcher.give(segment, trial))
        self.num_given += 1
        self._hand_out()

    def _hand_out(self) -> None:
        """As the engine does after everything that happens; groups are up at once."""
        for decision in self.dispatcher.decide(self.now):
            assert not isinstance(decision, StopGroup)
            if isinstance(decision, StartGroup):
                self.dispatcher.assignment.up(decision.group, self.now)


INPUTS = WorkerSetup({})


def engine_setup(storage: str, name: str) -> EngineSetup:
    """An engine with nothing behind it but an empty store."""
    groups = GroupSetup(name, WorkersConfig(max_groups=NUM_GROUPS), "none:None", storage, 300.0, storage, False)
    return EngineSetup(groups, keep_first_stage_from=0, budget=BudgetConfig())


def outcome_of(order: WorkerOrder) -> SegmentOutcome:
    """What a worker would report."""
    return SegmentOutcome(METRICS, StoredState(order.segment.parent, 0), Timings(0.0, 0.0, 0.0), {})


async def walk_all(run: Any, end_trial: Any, name: str, num_trials: int, settings: Mapping[str, Any]) -> None:
    """Has so many trials walk to their ends, many at once."""
    at_once = asyncio.Semaphore(NUM_AT_ONCE)

    async def one(number: int) -> None:
        async with at_once:
            trial, last, ahead = f"{name}-{number}", "", {}
            for segment in walk(number, settings):
                if segment.key not in ahead:  # as `Trial` has it
                    answer = await run(trial, trial, "root", segment)
                    ahead = {segment.key: answer.metrics, **answer.ahead}
                assert ahead[segment.key] == METRICS
                last = segment.key
            await end_trial(trial, trial, last)

    await asyncio.gather(*(one(number) for number in range(num_trials)))


class CalledDirectly(Engine):
    """An engine whose worker groups are coroutines that answer every order at once."""

    async def _run_group(self, name: str, num_workers: int) -> str | None:
        _, number = await self.join(name)
        order = await self.next_order(name, number)
        while order is not None:
            order = await self.order_finished(name, number, outcome_of(order))
            number += 1
        return None


class Actor(CalledDirectly):
    """The same as an actor."""

    async def nothing(self, trial: str, process: str, root: str, segment: Segment) -> Finished:
        """A call with the arguments of `run`, and an answer of the size of its answers."""
        return Finished(METRICS, cached=True, ahead={})

    async def peak_bytes(self) -> int:
        """Most memory of this process."""
        return peak_bytes()


class ActorWithProcesses(Actor):
    """An engine whose worker groups are processes that answer every order at once."""

    async def _run_group(self, name: str, num_workers: int) -> str | None:
        await _work.remote(self._setup.groups.engine, name)
        return None


@ray.remote(num_cpus=0)
def _work(engine_name: str, group: str) -> None:
    engine = ray.get_actor(engine_name)
    _, number = ray.get(engine.join.remote(group))
    order = ray.get(engine.next_order.remote(group, number))
    while order is not None:
        order = ray.get(engine.order_finished.remote(group, number, outcome_of(order)))
        number += 1


def dispatcher_alone(num_trials: int, repeats: int) -> dict[str, float]:
    """CPU seconds of the dispatcher for a new segment and for a known one."""
    new = known = 0.0
    for _ in range(repeats):
        driven = InProcess()
        new += driven.new(num_trials)
        known += driven.known(num_trials)
        assert driven.num_trained == SHARED + OWN * num_trials
    return {"new": new / repeats / num_new(num_trials), "known": known / repeats / num_answers(num_trials)}


async def engine_directly(num_trials: int, settings: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of the engine, without Ray's calls, for a new segment and for a known one."""
    with tempfile.TemporaryDirectory() as storage:
        engine = CalledDirectly(engine_setup(storage, "none"))
        serving = asyncio.create_task(engine.serve("searches/scale", INPUTS, 0))
        started = time.perf_counter()
        await walk_all(engine.run, engine.end_trial, "new", num_trials, settings)
        walked = time.perf_counter()
        await walk_all(engine.run, engine.end_trial, "known", num_trials, settings)
        ended = time.perf_counter()
        await engine.stop()
        await serving
    return {"new": (walked - started) / num_new(num_trials), "known": (ended - walked) / num_answers(num_trials)}


def engine_actor(kind: type[Actor], num_trials: int, settings: Mapping[str, Any]) -> tuple[dict[str, float], int]:
    """Seconds of the engine's actor for a new segment, a known one, and a call that does nothing; its most memory."""
    figures = {}
    with tempfile.TemporaryDirectory() as storage:
        name = f"{kind.__name__}-{num_trials}"
        options = {"name": name, "num_cpus": 0, "max_concurrency": MAX_CALLS}
        engine = ray.remote(kind).options(**options).remote(engine_setup(storage, name))
        engine.serve.remote("searches/scale", INPUTS, 0)
        calls = {
            "new": (engine.run, num_new(num_trials)),
            "known": (engine.run, num_answers(num_trials)),
            "a call that does nothing": (engine.nothing, num_answers(num_trials)),
        }
        for what, (call, num) in calls.items():
            started = time.perf_counter()
            asyncio.run(walk_all(call.remote, engine.end_trial.remote, what, num_trials, settings))
            figures[what] = (time.perf_counter() - started) / num
        peak = ray.get(engine.peak_bytes.remote())
        ray.get(engine.stop.remote())
        ray.kill(engine)
    return figures, peak


def peak_bytes() -> int:
    """Most memory that this process has had."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def num_new(num_trials: int) -> int:
    """Distinct segments of so many trials."""
    return SHARED + OWN * num_trials


def num_answers(num_trials: int) -> int:
    """Segments that so many trials are given."""
    return (SHARED + OWN) * num_trials


def main() -> None:
    """Measures few trials and many, in one run, and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--few", type=int, default=100, help="few trials (%(default)s)")
    parser.add_argument("--many", type=int, default=10_000, help="many trials (%(default)s)")
    parser.add_argument("--processes", type=int, default=1000, help="many trials with processes (%(default)s)")
    options = parser.parse_args()
    _, recipe = load_search("search_spaces/256.yaml", [])
    settings = TrialRecipe.of(recipe).segment_settings(FIRST_STAGE)  # of a real size

    table = Table(title="segments a second, and how much longer one takes among many")
    for column in ("", "few", "many", "few, a second", "many, a second", "time, many / few"):
        table.add_column(column, justify="right")

    def add(what: str, num_many: int, few: Mapping[str, float], many: Mapping[str, float]) -> None:
        numbers = [f"{num_new(num):,}" for num in (options.few, num_many)]
        for kind, seconds in few.items():
            rates = [f"{1 / each:,.0f}" for each in (seconds, many[kind])]
            table.add_row(f"{what}: {kind}", *numbers, *rates, f"{many[kind] / seconds:.2f}")

    add("dispatcher", options.many, dispatcher_alone(options.few, 20), dispatcher_alone(options.many, 1))
    few, many = (asyncio.run(engine_directly(num, settings)) for num in (options.few, options.many))
    add("engine", options.many, few, many)
    peaks = {"this process, which had the dispatcher and the engine": peak_bytes()}
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    for kind, num_many in ((Actor, options.many), (ActorWithProcesses, options.processes)):
        (few, _), (many, peak) = (engine_actor(kind, num, settings) for num in (options.few, num_many))
        add("actor" if kind is Actor else "actor, processes", num_many, few, many)
        peaks[f"the actor that had {num_new(num_many):,} segments"] = peak
    Console(width=110).print(table)
    for whose, peak in peaks.items():
        print(f"memory of {whose}: at most {peak / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
