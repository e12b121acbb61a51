"""`make chaos`: kill -9 of random processes under a search on a three-node test cluster.

Under FIFO the search has to end with exactly the records of a run that nobody disturbed, and a segment may be trained
again only if a kill came while it was trained. `--kills 30 --seed 0` are the defaults; takes a while, but no GPU.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any

import psutil
import yaml
from ray.cluster_utils import Cluster

from latentsync_ray.core.hashing import file_sha256
from latentsync_ray.core.record import Record
from latentsync_ray.store import Store

ROOT = Path(__file__).resolve().parents[1]
TRIVIAL = ROOT / "tests" / "integration"
"""Where the training is that costs nothing."""
TITLES = {
    "worker": ("ray::RayTrainWorker",),
    "controller": ("ray::TrainController",),
    "engine": ("ray::Engine",),
    "trial": ("ray::Trial", "ray::_Inner"),
}
KINDS = (*TITLES, "driver", "raylet")
NODE = {"num_cpus": 2, "memory": 8 * 2**30, "object_store_memory": 100 * 2**20}


@dataclass
class Kill:
    """One kill -9."""

    kind: str
    pid: int
    time: float = field(default_factory=time.time)


@dataclass
class Run:
    """What a search has left, and what was seen while it ran."""

    storage: Path
    started: float = field(default_factory=time.time)
    seconds: float = 0.0
    kills: list[Kill] = field(default_factory=list)
    finished: dict[str, float] = field(default_factory=dict)
    """Key -> when its record was written; later it is written again, when its state is dropped."""
    output: str = ""

    @property
    def trials(self) -> list[dict[str, str]]:
        (table,) = self.storage.glob("searches/*/trials.csv")
        with table.open() as stream:
            return list(csv.DictReader(stream))

    @property
    def records(self) -> dict[str, Record]:
        store = Store(str(self.storage))  # which checks their checksums
        records = {key: store.read_record(key) for key in store.keys()}  # noqa: SIM118
        return {key: record for key, record in records.items() if record is not None}

    def executions(self) -> dict[str, list[float]]:
        """Key -> when workers began to train it."""
        begun = defaultdict(list)
        for file in self.storage.glob("segments/*/executions/*.json"):
            begun[file.parts[-3]].append(file.stat().st_mtime)
        return {key: sorted(times) for key, times in begun.items()}


def write_space(folder: Path, step_seconds: float, thresholds: list[int], num_rates: int) -> Path:
    """A search over the trivial training; branches of 16 steps in segments of 4."""
    demo = ROOT / "configs" / "demo"
    recipe = yaml.safe_load((demo / "recipe.yaml").read_text())
    for name, source in recipe["components"].items():
        recipe["components"][name] = str((demo / source).resolve())
    recipe["data"]["folder"] = str(folder / "data")
    recipe["data"]["synthetic"] |= {"num_speakers": 2, "clips_per_speaker": 1, "num_frames": 40}
    recipe["validation"] |= {"num_samples": 2, "timesteps": [500]}
    recipe |= {"transition": {"max_step": max(thresholds), "min_step": 4}, "training": "trivial:TrivialTraining"}
    stage = {"model": {"step_seconds": step_seconds}, "report_every_steps": 4, "batch_size": 2}
    contents = {"recipe": recipe, "first_stage": stage, "second_stage": stage | {"num_steps": 16}}
    (folder / "recipe").mkdir(parents=True)
    for name, content in contents.items():
        (folder / "recipe" / f"{name}.yaml").write_text(yaml.safe_dump(content))
    space = {
        "recipe": "recipe",
        "trial_scheduler": {"name": "fifo"},
        "param_space": {
            "transition.at_step": {"grid": thresholds},
            "second_stage.optimizer.lr": {"grid": [0.001 * 2**number for number in range(num_rates)]},
        },
        "max_concurrent_trials": 4,
    }
    (folder / "space.yaml").write_text(yaml.safe_dump(space))
    return folder / "space.yaml"


class Search:
    """The command, which is started again whenever it was killed."""

    def __init__(self, space: Path, storage: Path, address: str):
        self._command = [sys.executable, "-m", "latentsync_ray.tune", str(space), f"storage={storage}"]
        self._log = storage.with_suffix(".txt")
        path = os.pathsep.join([str(ROOT), str(TRIVIAL)])
        self._environment = {**os.environ, "RAY_ADDRESS": address, "PYTHONPATH": path}
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def ended(self) -> bool:
        """Whether it has done its work."""
        status = self.process.poll()
        assert status in (None, 0), f"the search ended with status {status}:\n{self.output()}"
        return status == 0

    def output(self) -> str:
        return self._log.read_text()


def run(space: Path, storage: Path, num_kills: int, seed: int, say: Callable[[str], None]) -> Run:
    """Runs the search on a cluster of three nodes, killing now and then, until it has ended."""
    chance, done = random.Random(seed), Run(storage)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(TRIVIAL)])  # of the nodes' workers
    head = {**NODE, "num_cpus": 1, "include_dashboard": True, "dashboard_port": free_port()}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        nodes = [cluster.add_node(**NODE), cluster.add_node(**NODE)]
        search = Search(space, storage, cluster.address)
        due: list[str] = []  # all kinds, shuffled, again and again
        next_kill = time.monotonic() + chance.uniform(10, 20)
        seen = 0
        while not search.ended():
            time.sleep(0.1)
            for file in storage.glob("segments/*/record.json"):
                if file.parts[-2] not in done.finished:
                    done.finished[file.parts[-2]] = file.stat().st_mtime
            if len(done.kills) == num_kills or time.monotonic() < next_kill or len(done.finished) < seen:
                continue
            due = due or chance.sample(KINDS, len(KINDS))
            killed = next(filter(None, (kill(kind, chance, search, cluster, nodes) for kind in due)), None)
            if killed is None:
                continue
            due.remove(killed.kind)
            done.kills.append(killed)
            say(
                f"{killed.time - done.started:6.1f} s  kill {len(done.kills):2d}: {killed.kind}, process {killed.pid}"
            )
            # Three of four wait until something more is finished, so that the search gets on.
            next_kill = time.monotonic() + chance.uniform(0.5, 8)
            seen = len(done.finished) + (chance.random() < 0.75)
        done.seconds, done.output = time.time() - done.started, search.output()
        return done
    finally:
        search.process.kill()
        cluster.shutdown()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def kill(kind: str, chance: random.Random, search: Search, cluster: Cluster, nodes: list[Any]) -> Kill | None:
    """Kills a process of a kind, if there is one; what a machine's owner would start again is started again."""
    if kind == "driver":
        search.process.kill()
        search.process.wait()
        killed = Kill(kind, search.process.pid)
        search.start()
        return killed
    if kind == "raylet":
        node = nodes.pop(chance.randrange(len(nodes)))
        process = node.all_processes["raylet"][0].process
        process.kill()
        killed = Kill(kind, process.pid)
        node.kill_all_processes(check_alive=False, allow_graceful=False)
        nodes.append(cluster.add_node(**NODE))
        return killed
    processes = sorted(ray_processes(TITLES[kind]), key=lambda process: process.pid)
    if not processes:
        return None
    process = chance.choice(processes)
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return None
    return Kill(kind, process.pid)


def ray_processes(titles: tuple[str, ...]) -> list[psutil.Process]:
    """Processes of our own clusters whose titles begin so."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith(titles):
                found.append(process)
        except psutil.Error:
            continue  # it has just ended
    return found


def verdicts(disturbed: Run, clean: Run) -> dict[str, str]:
    """What does not hold, by claim; an empty line where it does."""
    ours, theirs = disturbed.records, clean.records
    said = attrgetter("metrics", "steps", "weights_sha256", "segment")
    differing = [key for key in ours if key in theirs and said(ours[key]) != said(theirs[key])]
    broken = [key for key, record in ours.items() if not state_is_whole(disturbed.storage, record)]
    again, in_vain = [], []
    for key, times in disturbed.executions().items():
        finished = disturbed.finished.get(key, float("inf"))
        again += [key for begun in times[1:] if begun > finished]
        in_vain += [
            key for one, two in pairwise(times) if not any(one <= k.time <= two + 0.01 for k in disturbed.kills)
        ]
    return {
        "the trials are the same": "" if disturbed.trials == clean.trials else "they differ",
        "nothing is lost": _keys(set(theirs) - set(ours)),
        "nothing is there that should not": _keys(set(ours) - set(theirs)),
        "every record says the same": _keys(differing),
        "every state is whole or dropped": _keys(broken),
        "nothing is trained again without a kill": _keys(in_vain),
        "nothing is trained again that was finished": _keys(again),
    }


def state_is_whole(storage: Path, record: Record) -> bool:
    file = storage / "segments" / record.key / "state.safetensors"
    return not record.state.kept or (file.exists() and file_sha256(file) == record.state.sha256)


def history(run: Run, key: str) -> str:
    """When a segment was begun and first finished, in seconds since the start."""
    segment = run.records[key].segment
    begun = ", ".join(f"{begun - run.started:.1f}" for begun in run.executions()[key])
    finished = run.finished.get(key, float("nan")) - run.started
    return f"{segment.stage} to step {segment.end_step}: begun at {begun} s; finished at {finished:.1f} s"


def _keys(keys: Any) -> str:
    return ", ".join(key[:8] for key in sorted(keys))


def chaos(
    folder: Path,
    num_kills: int,
    seed: int,
    *,
    step_seconds: float,
    thresholds: list[int],
    num_rates: int,
    say: Callable[[str], None] = print,
) -> tuple[Run, dict[str, str]]:
    """A search with kills and one without. Returns the first, and what does not hold of it."""
    disturbed = run(
        write_space(folder / "disturbed", step_seconds, thresholds, num_rates),
        folder / "disturbed" / "results",
        num_kills,
        seed,
        say,
    )
    notices = json.loads(next(disturbed.storage.glob("searches/*/summary.json")).read_text())["notices"]
    say(f"{len(disturbed.kills)} kills in {disturbed.seconds:.0f} s; {len(notices)} notices in the last call")
    clean = run(
        write_space(folder / "clean", step_seconds, thresholds, num_rates), folder / "clean" / "results", 0, 0, say
    )
    begun = sum(len(times) for times in disturbed.executions().values())
    left = len(list(disturbed.storage.rglob("*.tmp")))
    say(f"{len(clean.records)} segments; begun {begun} times under kills; {left} temporary files left")
    found = verdicts(disturbed, clean)
    for claim, what in found.items():
        say(f"{'does not hold' if what else 'holds':>14}: {claim}{': ' if what else ''}{what}")
    for key in sorted(disturbed.records) if any(found.values()) else []:
        say(f"{key[:8]} after {disturbed.records[key].segment.parent[:8]}: {history(disturbed, key)}")
    if any(found.values()):
        say(disturbed.output)
    return disturbed, found


def main() -> None:
    """Reads the command line, runs, and says what holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        disturbed, found = chaos(
            Path(folder), options.kills, options.seed, step_seconds=0.5, thresholds=[8, 16, 24, 32], num_rates=4
        )
    short = f"only {len(disturbed.kills)} kills before its end" if len(disturbed.kills) < options.kills else ""
    sys.exit(1 if short or any(found.values()) else 0)


if __name__ == "__main__":
    main()
