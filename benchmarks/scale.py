"""`make bench-scale`: segments a second that the dispatcher and the engine bear, and whether more trials slow them.

Nothing is trained: a trivial executor stands in for the worker groups. A trial walks 2 segments that all have in
common and 10 of its own, so 10,000 trials make 100,002 segments, which are new once; then as many trials again walk
the same ones, which are known by now. The dispatcher is driven in this process and timed in its CPU seconds. The
engine is the actor itself, asked by this process in the place of trials, with processes that answer in the place of
worker groups; it is timed by the clock and, since the machine may have other work, by its own CPU seconds. Most of
that is Ray's: the same call of an actor that does nothing is timed beside it.
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

from latentsync_ray.config import ComponentsConfig, ValidationConfig
from latentsync_ray.configfiles import load_search
from latentsync_ray.dispatch import Dispatcher
from latentsync_ray.engine import MAX_CALLS, Engine, EngineSetup
from latentsync_ray.orders import WorkerSetup
from latentsync_ray.search_config import WorkersConfig
from latentsync_ray.segment import FIRST_STAGE, SECOND_STAGE, Segment, stage_settings

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
        started = time.process_time()
        walks = {f"new-{trial}": walk(trial, SETTINGS) for trial in range(num_trials)}
        waiting: dict[str, list[str]] = defaultdict(list)
        for trial in walks:
            self._advance(trial, walks, waiting)
        while waiting:
            self.now += 1.0
            for group in [group.name for group in self.dispatcher.groups.values() if group.order is not None]:
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
                assert segment.key in self.dispatcher.done
                self._give(segment, f"known-{trial}")
        return time.process_time() - started

    def _advance(self, trial: str, walks: dict[str, Iterator[Segment]], waiting: dict[str, list[str]]) -> None:
        """A trial asks for its next segment, or ends."""
        segment = next(walks[trial], None)
        if segment is None:
            self.dispatcher.leave(trial)
        else:
            assert self.dispatcher.missing_ancestor(segment) is None
            self.dispatcher.ask(segment, trial)
            waiting[segment.key].append(trial)
        self._hand_out()

    def _give(self, segment: Segment, trial: str) -> None:
        self.dispatcher.dropped(self.dispatcher.give(segment, trial), lambda key: None)
        self.num_given += 1
        self._hand_out()

    def _hand_out(self) -> None:
        """As `Engine._poke` does after everything that happens."""
        groups = self.dispatcher.groups.values() if self.dispatcher.any_ready() else []
        for group in [group.name for group in groups if group.order is None]:
            self.dispatcher.assign(group, self.now)
        for num_workers in self.dispatcher.groups_to_start():
            self.dispatcher.add_group(f"group-{len(self.dispatcher.groups)}", num_workers)
        assert self.dispatcher.group_to_stop() is None


class WithoutTraining(Engine):
    """An engine whose worker groups are processes that answer every order at once."""

    def _fit(self, run: Any, loop: asyncio.AbstractEventLoop) -> None:
        ray.get(_work.remote(self._setup.worker.engine, run.name))
        asyncio.run_coroutine_threadsafe(self._ended(run, None), loop)

    async def nothing(self, trial: str, actor: str, root: str, values: dict[str, Any]) -> dict[str, Any]:
        """A call with the arguments and an answer of the size of `run`'s."""
        return {"key": values["parent"], "metrics": METRICS, "cached": True}

    async def used(self) -> tuple[float, int]:
        """CPU seconds of the process so far, and the most memory that it has taken."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime, 1024 * usage.ru_maxrss


@ray.remote(num_cpus=0)
def _work(engine_name: str, group: str) -> None:
    engine = ray.get_actor(engine_name)
    number = ray.get(engine.join.remote(group))
    timings = {"restore_seconds": 0.0, "train_seconds": 0.0, "validate_seconds": 0.0}
    while (order := ray.get(engine.next_order.remote(group, number))) is not None:
        record = {
            "segment": order["segment"],
            "metrics": METRICS,
            "steps": [{"loss": 0.0, "recon": 0.0}] * 100,
            "state": {"status": "kept", "sha256": order["segment"]["parent"], "bytes": 0},
            "timings": timings,
        }
        ray.get(engine.finished.remote(group, number, record))
        number += 1


class ThroughEngine:
    """The engine's actor, asked by this process in the place of trials."""

    def __init__(self, storage: str, name: str, settings: Mapping[str, Any]):
        self.settings, components = settings, ComponentsConfig(vae="none")
        worker = WorkerSetup(name, storage, "none", components, ValidationConfig(), 16, 0, "none:None")
        setup = EngineSetup(WorkersConfig(max_groups=NUM_GROUPS), worker, 0, storage)
        options = {"name": name, "num_cpus": 0, "max_concurrency": MAX_CALLS}
        self.engine = ray.remote(WithoutTraining).options(**options).remote(setup)

    def walk_all(self, name: str, num_trials: int) -> tuple[float, float]:
        """Has so many trials walk to their ends, many at once. Returns seconds, and CPU seconds of the engine."""
        started, (cpu_before, _) = time.perf_counter(), ray.get(self.engine.used.remote())
        asyncio.run(self._walk_all(name, num_trials))
        cpu, _ = ray.get(self.engine.used.remote())
        return time.perf_counter() - started, cpu - cpu_before

    async def _walk_all(self, name: str, num_trials: int) -> None:
        call = self.engine.nothing if name == "nothing" else self.engine.run
        at_once = asyncio.Semaphore(NUM_AT_ONCE)

        async def one(number: int) -> None:
            async with at_once:
                trial = f"{name}-{number}"
                for segment in walk(number, self.settings):
                    answer = await call.remote(trial, trial, "root", segment.to_dict())
                    assert answer["metrics"] == METRICS
                await self.engine.leave.remote(trial, trial)

        await asyncio.gather(*(one(number) for number in range(num_trials)))

    def stop(self) -> None:
        """Ends the groups and the engine."""
        ray.get(self.engine.stop.remote())
        ray.kill(self.engine)


def in_process(num_trials: int, repeats: int) -> tuple[float, float]:
    """CPU seconds of the dispatcher for a new segment and for a known one."""
    new = known = 0.0
    for _ in range(repeats):
        driven = InProcess()
        new += driven.new(num_trials)
        known += driven.known(num_trials)
        assert driven.num_trained == SHARED + OWN * num_trials
    return new / repeats / driven.num_trained, known / repeats / num_trials / (SHARED + OWN)


def through_engine(num_trials: int, settings: Mapping[str, Any]) -> tuple[dict[str, float], int]:
    """Seconds and the actor's CPU seconds for a new segment, a known one and an empty call; the most memory taken."""
    figures = {}
    num_calls = (SHARED + OWN) * num_trials
    with tempfile.TemporaryDirectory() as storage:
        engine = ThroughEngine(storage, f"engine-{num_trials}", settings)
        for name, num in (("new", SHARED + OWN * num_trials), ("known", num_calls), ("nothing", num_calls)):
            seconds, cpu_seconds = engine.walk_all(name, num_trials)
            figures[name], figures[f"{name}, CPU"] = seconds / num, cpu_seconds / num
        _, peak_bytes = ray.get(engine.engine.used.remote())
        engine.stop()
    return figures, peak_bytes


def main() -> None:
    """Measures few trials and many, in one run, and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000, help="many trials (10,000)")
    parser.add_argument("--few", type=int, default=100, help="few trials (100)")
    options = parser.parse_args()
    num_segments = [SHARED + OWN * num for num in (options.few, options.trials)]

    table = Table(title="segments a second, and how much longer one takes among many")
    for column in ("", *(f"{num:,} segments" for num in num_segments), "time, many / few"):
        table.add_column(column, justify="right")
    few, many = in_process(options.few, 20), in_process(options.trials, 1)
    for name, a, b in zip(("new", "known"), few, many, strict=True):
        table.add_row(f"dispatcher: {name}", f"{1 / a:,.0f}", f"{1 / b:,.0f}", f"{b / a:.2f}")

    _, recipe = load_search("search_spaces/256.yaml", [])
    settings = stage_settings(recipe.first_stage)  # of a real size
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    first, _ = through_engine(options.few, settings)
    second, peak_bytes = through_engine(options.trials, settings)
    for name, b in second.items():
        table.add_row(f"engine: {name}", f"{1 / first[name]:,.0f}", f"{1 / b:,.0f}", f"{b / first[name]:.2f}")
    Console(width=110).print(table)
    print(f"memory of the engine's process at most: {peak_bytes / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
