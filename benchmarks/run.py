"""`make bench`: the demo's 16 trials (FIFO) by the documented nested pattern and by ours, in one go.

Other values of the search can be given, as for the search itself: `make bench ARGS=second_stage.num_steps=80`.
"""

from __future__ import annotations

import contextlib
import csv
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import psutil
from rich.console import Console
from rich.table import Table

from latentsync_ray.config.searchfiles import load_search
from latentsync_ray.latentsync.inputs import ready_inputs
from latentsync_ray.store import Store

SPACE = "search_spaces/transition.yaml"
ARGUMENTS = ["trial_scheduler.name=fifo"]


def run(*command: str) -> tuple[str, int]:
    """Runs a command of ours. Gives what it printed, and how many processes it started in all."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    seen: set[tuple[int, float]] = set()
    watcher = threading.Thread(target=_watch, args=(psutil.Process(process.pid), seen))
    watcher.start()
    output, _ = process.communicate()
    watcher.join()
    assert process.returncode == 0, command
    return output.strip(), len(seen)


def _watch(process: psutil.Process, seen: set[tuple[int, float]]) -> None:
    """Notes every process below another one until that ends; Ray's workers hang below the driver's raylet."""
    with contextlib.suppress(psutil.NoSuchProcess):
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            seen.update((child.pid, child.create_time()) for child in _alive(process))
            time.sleep(0.2)


def _alive(process: psutil.Process) -> Iterator[psutil.Process]:
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.create_time()
            yield child


def switch_seconds(storage: str) -> float:
    """Mean time for which a worker group restored and built a trial's state before its first step."""
    records = [json.loads(file.read_text()) for file in Path(storage).glob("segments/*/record.json")]
    return mean(r["timings"]["restore_seconds"] for r in records if r["start_weights_sha256"] is not None)


def main() -> None:
    """Runs both, compares their results bit by bit, and prints the ratios."""
    arguments = [*ARGUMENTS, *sys.argv[1:]]
    with tempfile.TemporaryDirectory() as storage:
        # Clips are drawn and prepared before, so that neither side pays for it.
        _, recipe = load_search(SPACE, arguments)
        ready_inputs(recipe, Store(storage))
        output, our_processes = run("-m", "latentsync_ray.tune", SPACE, f"storage={storage}", *arguments)
        results = Path(re.findall("^results: (.+)$", output, re.MULTILINE)[-1])
        ours = json.loads((results / "summary.json").read_text())
        with (results / "trials.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        our_switch = switch_seconds(storage)
    output, nested_processes = run("benchmarks/nested.py", SPACE, *arguments)
    nested = json.loads(output.splitlines()[-1])

    for trial in nested["trials"]:
        (row,) = [
            row for row in rows if all(float(row[name]) == value for name, value in trial["parameters"].items())
        ]
        for name, value in trial["val/objective_terms"].items():
            assert float(row[name]) == value, f"trial {row['trial']}: {name} is {row[name]} and {value}"

    nested_steps = sum(trial["global_step"] for trial in nested["trials"])
    nested_seconds = sum(trial["train_seconds"] for trial in nested["trials"])
    table = Table(title=f"{len(rows)} trials, FIFO: nested TorchTrainers against shared segments")
    for column in ("", "nested", "latentsync_ray", "ratio"):
        table.add_column(column, justify="right")
    for name, theirs, own in (
        ("wall clock, s", nested["wall_seconds"], ours["wall_seconds"]),
        ("processes started", nested_processes, our_processes),
        ("to a trial's first step, s", mean(t["switch_seconds"] for t in nested["trials"]), our_switch),
        ("steps trained", nested_steps, ours["steps_trained"]),
        ("seconds in training steps, all workers", nested_seconds, ours["train_seconds"]),
        (
            "rest: start-up, validation, waiting, s",
            2 * nested["wall_seconds"] - nested_seconds,
            2 * ours["wall_seconds"] - ours["train_seconds"],
        ),
    ):
        table.add_row(name, f"{theirs:.2f}", f"{own:.2f}", f"{own / theirs:.3f}")
    Console(width=110).print(table)
    print(f"validation alone, ours: {ours['validate_seconds']:.1f} s")
    print(f"the final metrics of all {len(rows)} trials are equal, bit for bit")


if __name__ == "__main__":
    main()
