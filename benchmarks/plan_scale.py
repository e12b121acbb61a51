"""What simulated searches cost against the bound of their stage trees: `python benchmarks/plan_scale.py`.

First 5,000 trials on 1,000 GPUs, stage one 10 times as long as stage two. Then the shape of LatentSync, 14 days of
stage one and 1.5 days of stage two on 8 GPUs each, with ASHA's comparisons drawn anew for 100 courses of the search.
"""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import mean

from rich.console import Console
from rich.table import Table

from latentsync_ray.config.domains import Grid
from latentsync_ray.config.loading import with_overrides
from latentsync_ray.config.recipe import FIRST_STAGE, SECOND_STAGE
from latentsync_ray.config.search import TrialSchedulerConfig
from latentsync_ray.config.searchfiles import load_search
from latentsync_ray.planning.plan import plan_trials, simulate
from latentsync_ray.planning.simulation import Costs

SPACE = "search_spaces/latentsync.yaml"
DAY = 24 * 3600
NUM_SEEDS = 100


def many_trials(console: Console) -> None:
    """10 thresholds x 500 learning rates, one GPU for each group."""
    search, recipe = load_search(SPACE, [])
    search = replace(
        search,
        param_space={
            "transition.at_step": Grid(tuple(10_000 * (number + 1) for number in range(10))),
            "second_stage.optimizer.lr": Grid(tuple(1e-6 * (number + 1) for number in range(500))),
        },
        trial_scheduler=TrialSchedulerConfig(name="fifo"),
        max_concurrent_trials=5000,
    )
    settings = {"first_stage.num_workers": 1, "first_stage.report_every_steps": 10_000}
    settings |= {"second_stage.num_workers": 1, "second_stage.report_every_steps": 2500, "transition.min_step": 0}
    recipe = with_overrides(recipe, settings)
    started = time.perf_counter()
    trials = plan_trials(search, recipe)
    costs = Costs({FIRST_STAGE: 1.0, SECOND_STAGE: 1.0}, startup_seconds=60, idle_seconds=search.workers.idle_seconds)
    simulated = simulate(search, recipe, trials, 1000, costs)
    table = Table(title="1,000 GPUs, 5,000 trials: stage one up to 100,000 s, stage two 10,000 s")
    for column in ("", "GPU-hours", "/ bound", "makespan, hours", "/ bound"):
        table.add_column(column, justify="right")
    for name, outcome in (("with sharing", simulated.shared), ("without sharing", simulated.unshared)):
        gpu_seconds, makespan = outcome.gpu_seconds, outcome.makespan_seconds
        table.add_row(
            name,
            f"{gpu_seconds / 3600:,.0f}",
            f"{gpu_seconds / simulated.bound_gpu_seconds:.3f}",
            f"{makespan / 3600:.1f}",
            f"{makespan / simulated.bound_makespan_seconds:.3f}",
        )
    console.print(table)
    print(f"simulated in {time.perf_counter() - started:.0f} s")
    assert simulated.shared.gpu_seconds <= 1.05 * simulated.bound_gpu_seconds


def own_shape(console: Console) -> None:
    """The committed search space on 32 GPUs."""
    table = Table(title=f"LatentSync's shape, 16 trials on 32 GPUs: trainings paid for, over {NUM_SEEDS} courses")
    for column in (
        "grace period",
        "with sharing: mean",
        "most",
        "up to 1.4",
        "without: mean",
        "makespan / bound: most",
    ):
        table.add_column(column, justify="right")
    for grace_period in (250, 500, 1000):
        search, recipe = load_search(SPACE, [f"trial_scheduler.grace_period={grace_period}"])
        trials = plan_trials(search, recipe)
        step_seconds = {FIRST_STAGE: 14 * DAY / recipe.transition.max_step}
        step_seconds[SECOND_STAGE] = 1.5 * DAY / recipe.second_stage.num_steps
        costs = Costs(step_seconds, startup_seconds=60, idle_seconds=search.workers.idle_seconds)
        one_training = max(sum(costs.gpu_seconds(segment) for segment in trial.walk()) for trial in trials)
        courses = [simulate(search, recipe, trials, 32, costs, seed) for seed in range(NUM_SEEDS)]
        paid = [course.shared.gpu_seconds / one_training for course in courses]
        table.add_row(
            str(grace_period),
            f"{mean(paid):.2f}",
            f"{max(paid):.2f}",
            f"{sum(value <= 1.4 for value in paid)} of {NUM_SEEDS}",
            f"{mean(course.unshared.gpu_seconds for course in courses) / one_training:.2f}",
            f"{max(course.shared.makespan_seconds / course.bound_makespan_seconds for course in courses):.3f}",
        )
        assert grace_period > 250 or max(paid) <= 1.4
    console.print(table)


if __name__ == "__main__":
    many_trials(Console(width=110))
    own_shape(Console(width=110))
