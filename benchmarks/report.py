"""How long the report of a large search takes: 2,000 trials by default, as an adaptive search leaves them.

python benchmarks/report.py [--trials N] [--output report.html]
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from latentsync_ray.config.domains import Choice, LogUniform, RandInt
from latentsync_ray.config.loading import load_recipe
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.engine.messages import EngineStatus
from latentsync_ray.report.compose import page_of, reported
from latentsync_ray.report.origin import write_origin
from latentsync_ray.report.page import page_html
from latentsync_ray.report.stored import Progress, Written
from latentsync_ray.report.summary import summarise
from latentsync_ray.report.trials import Boundary, TrialResult, TrialStatus
from latentsync_ray.store import Store

AT, RATE, MODULES = "transition.at_step", "second_stage.optimizer.lr", "second_stage.trainable_modules"
TERMS = ("val/objective", "val/recon", "val/sync", "val/lpips", "val/trepa")
LOSSES = ("train/loss", "train/recon", "train/sync", "train/lpips", "train/trepa", "train/grad_norm", "train/lr")
FOLDER = "searches/large-00000000"


def trial(number: int, rng: random.Random) -> TrialResult:
    """A trial that leaves a common stage one at some step, and is stopped after some of stage two."""
    at, lr, modules = rng.randrange(200, 801, 40), 10 ** rng.uniform(-5, -2.5), rng.choice((None, ["attentions."]))
    status = rng.choices((TrialStatus.STOPPED, TrialStatus.FINISHED, TrialStatus.DIVERGED), (65, 30, 5))[0]
    end = 1000 if status is TrialStatus.FINISHED else at + 10 * rng.randrange(1, 10)
    points = list[Boundary]()
    for step in [*range(40, at + 1, 40), *range(at + 10, end + 1, 10)]:
        first = step <= at
        noise = random.Random(step if first else number * 10_000 + step).uniform(0.95, 1.05)
        value = noise * (0.15 + 20 / (step + 50)) * (1 if first else 1 + 30 * abs(lr - 2e-4))
        metrics = {name: value * (1 + index) for index, name in enumerate((*TERMS, *LOSSES))}
        key, parent = f"{step}" if first else f"{number}-{step}", points[-1].key if points else "root"
        stage = "first_stage" if first else "second_stage"
        points.append(Boundary(key, parent, stage, step, 0 if first else step - at, metrics))
    asked = {point.key: 40 if point.stage == "first_stage" else 10 for point in points}
    shared = tuple(point.key for point in points if point.stage == "first_stage")
    return TrialResult(number, {AT: at, MODULES: modules, RATE: lr}, tuple(points), status, "", asked, shared)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--output", type=Path, help="keep the page there")
    options = parser.parse_args()
    rng = random.Random(0)
    trials = [trial(number, rng) for number in range(options.trials)]
    space = {RATE: LogUniform(1e-5, 3e-3), MODULES: Choice((None, ["attentions."])), AT: RandInt(200, 800)}
    search = SearchConfig("recipe", "large", param_space=space, num_samples=options.trials)
    recipe = load_recipe(Path(__file__).parents[1] / "configs" / "demo")
    with tempfile.TemporaryDirectory() as root:
        store = Store(root)
        write_origin(store, FOLDER, search, recipe, "")
        for progress in (Progress.RUNNING, Progress.ENDED):
            summary = summarise(search, recipe, trials, EngineStatus(), [], {}, 0.0, lambda key: None, root)
            started, cpu = time.perf_counter(), time.process_time()
            html = page_html(page_of([reported(store, FOLDER, Written(summary, progress, datetime.now(UTC)))]))
            seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
            print(f"{progress}: {seconds:.2f} s ({cpu:.2f} s of CPU), {len(html) / 1e6:.1f} MB", flush=True)
    if options.output is not None:
        options.output.write_text(html)


if __name__ == "__main__":
    main()
