"""`make chaos`: kill -9 of random processes under a search on a three-node test cluster, and stops if asked for.

Under FIFO the search has to end with exactly the records of a run that nobody disturbed, and a segment may be trained
again only if a kill came while it was trained. `--faults 30 --seed 0` are the defaults; takes a while, but no GPU.
With `--ranks 2 --state-mb 50 --stops` groups have two processes (gloo), states are large, and half of the faults stop
a process for 20 seconds, which nobody may take for its end.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import random
import re
import socket
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

import yaml
from faults import NODE, ROOT, STOP_SECONDS, TRIVIAL, Fault, Faults, Search
from ray.cluster_utils import Cluster

from latentsync_ray.core.hashing import file_sha256
from latentsync_ray.core.record import Record
from latentsync_ray.store import Store
from latentsync_ray.store.upkeep import leftovers, whole_records

KNOWN_FILES = re.compile(
    r"store\.json"
    r"|segments/[0-9a-f]{64}/(record\.json|state\.safetensors|preview\.png|terms\.json|partial\.(json|safetensors))"
    r"|segments/[0-9a-f]{64}/executions/[0-9a-f]{32}\.json"
    r"|searches/[^/]+/(trials\.(json|csv)|summary\.json|spent\.json|engine_losses\.json|report\.(html|json))"
    r"|searches/[^/]+/(command\.txt|search\.yaml|recipe/[a-z_]+\.yaml)"
    r"|searches/[^/]+/decisions/[0-9-]+\.json"
    r"|searches/[^/]+/best/[a-z_]+\.yaml"
    r"|searches/[^/]+/tensorboard/.+"
    r"|syncnets/.+"
)
"""What may be in a storage once a search has ended."""


@dataclass(frozen=True)
class Mode:
    """What the search is like, and what befalls it."""

    num_faults: int
    seed: int
    step_seconds: float = 0.5
    thresholds: tuple[int, ...] = (8, 16, 24, 32)
    num_rates: int = 4
    num_ranks: int = 1
    """Processes of each group."""
    state_mb: int = 0
    """Megabytes of each state."""
    stops: bool = False
    """Whether there are stops beside kills."""


@dataclass
class Run:
    """What a search has left, and what was seen while it ran."""

    storage: Path
    started: float = field(default_factory=time.time)
    seconds: float = 0.0
    faults: list[Fault] = field(default_factory=list)
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

    def unknown_files(self) -> list[str]:
        """Names of the files that nobody asks for."""
        names = (str(file.relative_to(self.storage)) for file in self.storage.rglob("*") if file.is_file())
        return sorted(name for name in names if not KNOWN_FILES.fullmatch(name))


def write_space(folder: Path, mode: Mode) -> Path:
    """A search over the trivial training; branches of 16 steps in segments of 4."""
    transition = {"max_step": max(mode.thresholds), "min_step": 4}
    recipe = {"training": "trivial:TrivialTraining", "transition": transition}
    model: dict[str, float] = {"step_seconds": mode.step_seconds}
    if mode.state_mb:
        model["state_mb"] = mode.state_mb
    stage = {"model": model, "report_every_steps": 4, "num_workers": mode.num_ranks}
    contents = {"recipe": recipe, "first_stage": stage, "second_stage": stage | {"num_steps": 16}}
    (folder / "recipe").mkdir(parents=True)
    for name, content in contents.items():
        (folder / "recipe" / f"{name}.yaml").write_text(yaml.safe_dump(content))
    space = {
        "recipe": "recipe",
        "trial_scheduler": {"name": "fifo"},
        "param_space": {
            "transition.at_step": {"grid": list(mode.thresholds)},
            "second_stage.optimizer.lr": {"grid": [0.001 * 2**number for number in range(mode.num_rates)]},
        },
        "max_concurrent_trials": 4,
    }
    (folder / "space.yaml").write_text(yaml.safe_dump(space))
    return folder / "space.yaml"


def run(folder: Path, mode: Mode, num_faults: int, say: Callable[[str], None]) -> Run:
    """Runs the search on a cluster of three nodes, with a fault now and then, until it has ended."""
    space, done = write_space(folder, mode), Run(folder / "results")
    chance = random.Random(mode.seed)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(TRIVIAL)])  # of the nodes' workers
    head = {**NODE, "num_cpus": 1, "include_dashboard": True, "dashboard_port": free_port()}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    with contextlib.ExitStack() as ends:
        ends.callback(cluster.shutdown)
        nodes = [cluster.add_node(**NODE), cluster.add_node(**NODE)]
        search = Search(space, done.storage, cluster.address)
        ends.callback(search.process.kill)
        faults = Faults(chance, search, cluster, nodes, mode.stops)
        ends.callback(faults.let_go_on, everybody=True)
        next_fault = time.monotonic() + chance.uniform(10, 20)
        seen = 0
        while not search.ended():
            time.sleep(0.1)
            faults.let_go_on()
            for file in done.storage.glob("segments/*/record.json"):
                if file.parts[-2] not in done.finished:
                    done.finished[file.parts[-2]] = file.stat().st_mtime
            if len(done.faults) == num_faults or time.monotonic() < next_fault or len(done.finished) < seen:
                continue
            fault = faults.next()
            if fault is None:
                continue
            done.faults.append(fault)
            say(f"{fault.time - done.started:6.1f} s  fault {len(done.faults):2d}: {fault}")
            # Three of four wait until something more is finished, so that the search gets on.
            next_fault = time.monotonic() + chance.uniform(0.5, 8)
            seen = len(done.finished) + (chance.random() < 0.75)
        done.seconds, done.output = time.time() - done.started, search.output()
        return done


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
            key
            for one, two in pairwise(times)
            if not any(fault.ends_one_within(one, two) for fault in disturbed.faults)
        ]
    store = Store(str(disturbed.storage))
    collected = leftovers(store, whole_records(store))
    return {
        "the trials are the same": "" if disturbed.trials == clean.trials else "they differ",
        "nothing is lost": _keys(set(theirs) - set(ours)),
        "nothing is there that should not": _keys(set(ours) - set(theirs)),
        "every record says the same": _keys(differing),
        "every state is whole or dropped": _keys(broken),
        "nothing is trained again without a kill": _keys(in_vain),
        "nothing is trained again that was finished": _keys(again),
        "every file that is left over is collected": ", ".join(set(disturbed.unknown_files()) - set(collected)),
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


def chaos(folder: Path, mode: Mode, say: Callable[[str], None] = print) -> tuple[Run, dict[str, str]]:
    """A search with faults and one without. Returns the first, and what does not hold of it."""
    disturbed = run(folder / "disturbed", mode, mode.num_faults, say)
    notices = json.loads(next(disturbed.storage.glob("searches/*/summary.json")).read_text())["notices"]
    num_stops = sum(fault.is_stop for fault in disturbed.faults)
    what = f"{len(disturbed.faults) - num_stops} kills and {num_stops} stops of {STOP_SECONDS:.0f} s"
    say(f"{what} in {disturbed.seconds:.0f} s; {len(notices)} notices in the last call")
    clean = run(folder / "clean", mode, 0, say)
    begun = sum(len(times) for times in disturbed.executions().values())
    left = disturbed.unknown_files()
    say(f"{len(clean.records)} segments; begun {begun} times under faults; {len(left)} unknown files left")
    found = verdicts(disturbed, clean)
    for claim, what in found.items():
        say(f"{'does not hold' if what else 'holds':>14}: {claim}{': ' if what else ''}{what}")
    if any(found.values()):
        for key in sorted(disturbed.records):
            say(f"{key[:8]} after {disturbed.records[key].segment.parent[:8]}: {history(disturbed, key)}")
        say(disturbed.output)
    return disturbed, found


def main() -> None:
    """Reads the command line, runs, and says what holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=30, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of what happens when, and to whom")
    parser.add_argument("--ranks", type=int, default=1, help="processes of each group")
    parser.add_argument("--state-mb", type=int, default=0, help="megabytes of each state")
    parser.add_argument("--stops", action="store_true", help="stops beside kills")
    options = parser.parse_args()
    mode = Mode(options.faults, options.seed, num_ranks=options.ranks, state_mb=options.state_mb, stops=options.stops)
    with tempfile.TemporaryDirectory() as folder:
        disturbed, found = chaos(Path(folder), mode)
    short = len(disturbed.faults) < options.faults
    if short:
        print(f"only {len(disturbed.faults)} faults before its end")
    sys.exit(1 if short or any(found.values()) else 0)


if __name__ == "__main__":
    main()
