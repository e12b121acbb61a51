"""What a search would train and cost: `latentsync-ray plan search_spaces/transition.yaml [key=value ...]`.

With `--simulate --gpus N` the whole search runs on a virtual clock. Nothing is trained, and neither torch nor Ray is
needed.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from latentsync_ray.cli import run_cli
from latentsync_ray.config.domains import Grid
from latentsync_ray.config.errors import UserError
from latentsync_ray.config.recipe import FIRST_STAGE, SECOND_STAGE
from latentsync_ray.config.search import POPULATION_SCHEDULERS, SearchConfig
from latentsync_ray.config.searchfiles import load_search
from latentsync_ray.core.trial_recipe import STAGES
from latentsync_ray.planning.plan import Plan, Simulated, plan_trials, simulate
from latentsync_ray.planning.simulation import Costs, PlannedTrial
from latentsync_ray.usage import CommandParser


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line and prints the plan. Returns the exit status."""
    options = parser().parse_intermixed_args(arguments)
    search, recipe = load_search(options.search_space, options.overrides)
    trials = plan_trials(search, recipe, options.transition_step)
    console = Console(width=110)
    _print_plan(console, Plan(search, trials))
    if options.simulate:
        if options.gpus is None:
            raise UserError("--simulate: needs the number of GPUs; add for example --gpus 8")
        step_seconds = {FIRST_STAGE: options.first_stage_seconds, SECOND_STAGE: options.second_stage_seconds}
        costs = Costs(step_seconds, options.startup_seconds, search.workers.idle_seconds)
        simulated = simulate(search, recipe, trials, options.gpus, costs, options.seed)
        _print_simulated(console, search, trials, options.gpus, costs, simulated)
    return 0


def parser() -> CommandParser:
    """The command's arguments."""
    made = CommandParser(
        "plan",
        "SPACE [key=value ...] [options]",
        "What a search would train and cost. Nothing is trained, Ray is not started.",
        ("search_spaces/transition.yaml", "SPACE --simulate --gpus 8"),
    )
    made.add_argument("search_space", metavar="SPACE", help="a file such as search_spaces/transition.yaml")
    made.add_argument("overrides", nargs="*", metavar="key=value", help="values of the search or of its recipe")
    made.add_argument("--transition-step", type=int, metavar="N", help="leave stage one there, whatever the policy")
    made.add_argument("--simulate", action="store_true", help="run the search on a virtual clock")
    made.add_argument("--gpus", type=_positive(int), metavar="N", help="GPUs (or CPU workers) in all")
    made.add_argument(
        "--first-stage-seconds", type=_positive(float), default=1.0, metavar="S", help="of a step of stage one (1)"
    )
    made.add_argument(
        "--second-stage-seconds", type=_positive(float), default=1.0, metavar="S", help="of a step of stage two (1)"
    )
    made.add_argument(
        "--startup-seconds", type=_positive(float), default=60.0, metavar="S", help="of a worker group (60)"
    )
    made.add_argument("--seed", type=int, default=0, metavar="N", help="of what ASHA decides in the simulation (0)")
    return made


def _positive(kind: type[int] | type[float]) -> Any:
    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = kind(0)
        if not (math.isfinite(value) and value > 0):
            raise argparse.ArgumentTypeError(f"must be a finite number above 0, got {text!r}")
        return value

    return read


def _print_plan(console: Console, plan: Plan) -> None:
    search = plan.search
    table = Table(title=f"{search.name}: {len(plan.trials)} trials, all of them to their ends")
    for column in ("", "distinct segments", "distinct steps", "steps without sharing", "sharing factor"):
        table.add_column(column, justify="right")
    for name, stages in (("first stage", STAGES[:1]), ("second stage", STAGES[1:]), ("both", STAGES)):
        num_segments = sum(segment.stage in stages for segment in plan.segments.values())
        num_steps, num_asked = plan.distinct_steps(*stages), plan.steps_without_sharing(*stages)
        factor = f"{num_asked / num_steps:.2f}" if num_steps else ""
        table.add_row(name, f"{num_segments:,}", f"{num_steps:,}", f"{num_asked:,}", factor)
    console.print(table)
    if not all(isinstance(domain, Grid) for domain in search.param_space.values()):
        print(
            f"values that are no grid are drawn here, with seed {search.sampling_seed}; Ray Tune will draw other ones"
            "; what breaks a rule is left out"
        )
    name = search.trial_scheduler.name
    if name in ("asha", "hyperband"):
        print(
            f"{name} stops trials early, so that the search trains less than this; --simulate shows how much of asha"
        )
    if name in POPULATION_SCHEDULERS:
        print(f"{name} changes values on the way: this is what its trials train if none becomes a clone")


def _print_simulated(
    console: Console,
    search: SearchConfig,
    trials: Sequence[PlannedTrial],
    num_gpus: int,
    costs: Costs,
    simulated: Simulated,
) -> None:
    table = Table(title=f"on {num_gpus:,} GPUs, {search.max_concurrent_trials:,} trials at once")
    for column in ("", "GPU-hours", "/ bound", "/ one training", "makespan, hours", "/ bound"):
        table.add_column(column, justify="right")
    shared, unshared = simulated.shared, simulated.unshared
    one_training = max(sum(costs.gpu_seconds(segment) for segment in trial.walk()) for trial in trials)
    for name, gpu_seconds, makespan_seconds in (
        ("bound of the stage tree", simulated.bound_gpu_seconds, simulated.bound_makespan_seconds),
        ("with sharing", shared.gpu_seconds, shared.makespan_seconds),
        ("without sharing", unshared.gpu_seconds, unshared.makespan_seconds),
    ):
        table.add_row(
            name,
            f"{gpu_seconds / 3600:,.2f}",
            f"{gpu_seconds / simulated.bound_gpu_seconds:.3f}",
            f"{gpu_seconds / one_training:.2f}",
            f"{makespan_seconds / 3600:,.2f}",
            f"{makespan_seconds / simulated.bound_makespan_seconds:.3f}",
        )
    console.print(table)
    first, second = (costs.step_seconds[stage] for stage in (FIRST_STAGE, SECOND_STAGE))
    print(f"assumed: {first:g} s for a step of stage one, {second:g} s of stage two, validation included;")
    print(f"a group starts in {costs.startup_seconds:g} s and is given back when idle for {costs.idle_seconds:g} s;")
    print("GPUs count as long as they are held")
    if search.trial_scheduler.name == "asha":
        print("ASHA's comparisons are drawn at random (--seed), since nobody knows the metrics before")
    print("bound: every distinct segment once on GPUs that never wait; the longest trial, or all work over all GPUs")
    print("without sharing: the same trials to the same steps, each by itself; one training: the longest, to its end")


if __name__ == "__main__":
    run_cli(main)
