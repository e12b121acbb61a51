"""`make bench`: the demo's 16 trials (FIFO) by the documented nested pattern and by ours, in one go.

Other values of the search can be given, as for the search itself: `make bench ARGS=second_stage.num_steps=80`.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from latentsync_ray.configfiles import load_search
from latentsync_ray.inputs import ready_inputs

SPACE = "search_spaces/transition.yaml"
ARGUMENTS = ["trial_scheduler.name=fifo"]


def run(*command: str) -> str:
    """Runs a command of ours and gives what it printed."""
    done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def main() -> None:
    """Runs both, compares their results bit by bit, and prints the ratios."""
    arguments = [*ARGUMENTS, *sys.argv[1:]]
    with tempfile.TemporaryDirectory() as storage:
        # Clips are drawn and prepared before, so that neither side pays for it.
        _, recipe = load_search(SPACE, arguments)
        ready_inputs(recipe)
        output = run("-m", "latentsync_ray.tune", SPACE, f"storage={storage}", *arguments)
        results = Path(output.splitlines()[-1].removeprefix("results: "))
        ours = json.loads((results / "summary.json").read_text())
        with (results / "trials.csv").open() as stream:
            rows = list(csv.DictReader(stream))
    nested = json.loads(run("benchmarks/nested.py", SPACE, *arguments).splitlines()[-1])

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
        ("steps trained", nested_steps, ours["steps_trained"]),
        ("seconds in training steps, all workers", nested_seconds, ours["train_seconds"]),
        (
            "rest: start-up, validation, waiting, s",
            2 * nested["wall_seconds"] - nested_seconds,
            2 * ours["wall_seconds"] - ours["train_seconds"],
        ),
    ):
        table.add_row(name, f"{theirs:.1f}", f"{own:.1f}", f"{own / theirs:.3f}")
    Console(width=110).print(table)
    print(f"validation alone, ours: {ours['validate_seconds']:.1f} s")
    print(f"the final metrics of all {len(rows)} trials are equal, bit for bit")


if __name__ == "__main__":
    main()
