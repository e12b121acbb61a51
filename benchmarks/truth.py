"""`make truth`: what adaptive searches find, held against a grid that has been trained whole.

The grid (5 thresholds, 5 learning rates, 2 training seeds; search_spaces/truth.yaml) fills a store. Then ASHA, Optuna
and PBT search the grid's values, 20 times each with other draws, and find in the store what they ask for; only PBT,
which changes values on the way, has something left to train. Everything is kept: the same command goes on.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from rich.console import Console
from rich.progress import track
from rich.table import Table

from latentsync_ray.cluster.connection import cluster
from latentsync_ray.config.searchfiles import load_search
from latentsync_ray.tune import main as tune

SPACE = "search_spaces/truth.yaml"
NUM_SEEDS = 20
SEARCHES = {
    # One that promotes: the first to come to a rung pass it for want of others in ASHA that only stops.
    "ASHA": [
        "num_samples=20",
        "trial_scheduler={name: asha, promote: true, time_attr: second_stage_step, grace_period: 10,"
        " reduction_factor: 4}",
    ],
    "Optuna": [
        "num_samples=14",
        "search_alg=optuna",
        "trial_scheduler={name: asha, time_attr: second_stage_step, grace_period: 10, reduction_factor: 3}",
    ],
    "PBT": [
        "num_samples=4",
        "trial_scheduler={name: pbt, time_attr: second_stage_step, perturbation_interval: 20}",
    ],
}


class Shown(io.StringIO):
    """Keeps what is printed, and shows it."""

    def write(self, text: str) -> int:
        """As of any stream."""
        sys.stderr.write(text)
        return super().write(text)


def search(*arguments: str, output: io.StringIO | None = None) -> Path:
    """Runs a search over the grid's store. Returns its folder; what it prints goes to `output`."""
    output = output or io.StringIO()
    with contextlib.redirect_stdout(output):
        status = tune([SPACE, *arguments])
    assert status == 0, output.getvalue()
    return Path(re.findall("^results: (.+)$", output.getvalue(), re.MULTILINE)[-1])


def best_of_grid(folder: Path) -> dict[int, float]:
    """Training seed -> the best final metric in the whole grid."""
    with (folder / "trials.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    seeds = {int(row["seed"]) for row in rows}
    return {seed: min(float(row["val/objective"]) for row in rows if int(row["seed"]) == seed) for seed in seeds}


def arguments(method: str, draw: int, seed: int) -> list[str]:
    """What a search over the grid's values is run with."""
    settings, _ = load_search(SPACE, [])
    space = {name: {"choice": domain.values()} for name, domain in settings.param_space.items() if name != "seed"}
    if method == "PBT":  # a population may not search the seed, not even over one value
        searched = [f"seed={seed}", f"param_space={json.dumps(space)}"]
    else:
        searched = [f"param_space.{name}={json.dumps(values)}" for name, values in space.items()]
        searched.append(f"param_space.seed={{choice: [{seed}]}}")
    return [f"name=truth-{method.lower()}", *searched, f"sampling_seed={draw}", *SEARCHES[method]]


def replay(method: str, draw: int, best: dict[int, float], grid_steps: int) -> dict[str, Any]:
    """One search over the grid's values: its regret, and which share of the grid's steps it asked for."""
    seed = draw % len(best)
    folder = search(*arguments(method, draw, seed), *sys.argv[1:])
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "regret": summary["best"]["val/objective"] / best[seed] - 1,
        "share": summary["steps_distinct"] / grid_steps,
        "trained": summary["steps_trained"],
    }


def draw_picture(outcomes: dict[str, list[dict[str, Any]]]) -> None:
    """Regret against the share of the grid's steps, a point a search."""
    figure, axes = plt.subplots(figsize=(7, 4))
    for method, runs in outcomes.items():
        axes.scatter([run["share"] for run in runs], [100 * run["regret"] for run in runs], label=method, alpha=0.7)
    axes.axhline(2, color="grey", linestyle=":")
    axes.axvline(0.25, color="grey", linestyle=":")
    axes.set_xlabel("share of the grid's distinct steps")
    axes.set_ylabel("regret against the grid's best, %")
    axes.legend()
    figure.tight_layout()
    figure.savefig("docs/regret.png", dpi=110)


def main() -> None:
    """Trains the grid, searches it, and prints the regrets."""
    with cluster():
        grid = search(*sys.argv[1:], output=Shown())
        best = best_of_grid(grid)
        # Of one training seed, since each search has one.
        grid_steps = json.loads((grid / "summary.json").read_text())["steps_distinct"] // len(best)
        outcomes = {
            method: [
                replay(method, draw, best, grid_steps)
                for draw in track(range(NUM_SEEDS), method, console=Console(stderr=True))
            ]
            for method in SEARCHES
        }
    table = Table(title=f"{NUM_SEEDS} searches each over a grid of {grid_steps:,} distinct steps a training seed")
    for column in ("", "median regret", "worst", "within 2 %", "median share of steps", "steps trained now"):
        table.add_column(column, justify="right")
    for method, runs in outcomes.items():
        regrets = [run["regret"] for run in runs]
        table.add_row(
            method,
            f"{statistics.median(regrets):.2%}",
            f"{max(regrets):.2%}",
            f"{sum(regret <= 0.02 for regret in regrets)} of {len(regrets)}",
            f"{statistics.median(run['share'] for run in runs):.1%}",
            str(sum(run["trained"] for run in runs)),
        )
    Console(width=110).print(table)
    draw_picture(outcomes)


if __name__ == "__main__":
    main()
