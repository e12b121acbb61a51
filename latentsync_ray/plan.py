"""What a search would train and cost: `latentsync-ray plan search_spaces/transition.yaml [key=value ...]`.

With `--simulate --gpus N` the whole search runs on a virtual clock. Nothing is trained, and neither torch nor Ray is
needed.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from latentsync_ray.cli import program, run_cli
from latentsync_ray.config.domains import Grid
from latentsync_ray.config.errors import UserError
from latentsync_ray.config.lengths import extremes, longest_trial
from latentsync_ray.config.loading import Variants, with_overrides
from latentsync_ray.config.recipe import FIRST_STAGE, SECOND_STAGE, Recipe
from latentsync_ray.config.search import POPULATION_SCHEDULERS, SearchConfig
from latentsync_ray.config.searchfiles import load_search
from latentsync_ray.core.segment import Segment
from latentsync_ray.core.trial_recipe import STAGES, TrialRecipe
from latentsync_ray.planning.simulation import Costs, GoOn, Outcome, PlannedTrial, RandomRungs, Simulation


@dataclass(frozen=True)
class Simulated:
    """One course of a search on a virtual clock, and what no other could have spared it."""

    shared: Outcome
    """As the search runs."""
    unshared: Outcome
    """The same trials to the same steps, each of which trains everything by itself."""
    bound_gpu_seconds: float
    """Of the stage tree: every distinct segment once, and no GPU ever idle."""
    bound_makespan_seconds: float
    """Of the longest trial, or of all GPUs together if that is more."""


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line and prints the plan. Returns the exit status."""
    options = _parser().parse_intermixed_args(arguments)
    search, recipe = load_search(options.search_space, options.overrides)
    trials = plan_trials(search, recipe, options.transition_step)
    console = Console(width=110)
    _print_plan(console, search, trials)
    if options.simulate:
        if options.gpus is None:
            raise UserError("--simulate: needs the number of GPUs; add for example --gpus 8")
        step_seconds = {FIRST_STAGE: options.first_stage_seconds, SECOND_STAGE: options.second_stage_seconds}
        costs = Costs(step_seconds, options.startup_seconds, search.workers.idle_seconds)
        simulated = simulate(search, recipe, trials, options.gpus, costs, options.seed)
        _print_simulated(console, search, trials, options.gpus, costs, simulated)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program("plan"), description=__doc__)
    parser.add_argument("search_space", help="a file such as search_spaces/transition.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values of the search or of its recipe")
    parser.add_argument("--transition-step", type=int, metavar="N", help="leave stage one there, whatever the policy")
    parser.add_argument("--simulate", action="store_true", help="run the search on a virtual clock")
    parser.add_argument("--gpus", type=_positive(int), metavar="N", help="GPUs (or CPU workers) in all")
    parser.add_argument(
        "--first-stage-seconds", type=_positive(float), default=1.0, metavar="S", help="of a step of stage one (1)"
    )
    parser.add_argument(
        "--second-stage-seconds", type=_positive(float), default=1.0, metavar="S", help="of a step of stage two (1)"
    )
    parser.add_argument(
        "--startup-seconds", type=_positive(float), default=60.0, metavar="S", help="of a worker group (60)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn where ASHA would compare trials (0)")
    return parser


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


def plan_trials(search: SearchConfig, recipe: Recipe, transition_step: int | None = None) -> list[PlannedTrial]:
    """The trials of a search, in the order in which Ray Tune creates them.

    Args:
        search: Its grids are exact. Other values are drawn here with its sampling seed; Ray Tune draws other ones. A
            draw that breaks a rule is left out, since its trial fails before it trains.
        recipe: The recipe before a trial's own values.
        transition_step: Where all trials leave stage one, instead of what their policies say.

    Raises:
        UserError: A policy reads metrics, which nobody knows before, or values break a rule.
    """
    fixed: dict[str, Any] = {}
    if transition_step is not None:
        fixed = {"transition.plateau": None, "transition.below": None, "transition.at_step": transition_step}
        with_overrides(recipe, fixed, "--transition-step")
    variants = Variants(recipe)
    trials: list[PlannedTrial] = []
    for number, values in enumerate(_draws(search)):
        try:
            made = variants.recipe({**values, **fixed})
        except UserError:
            if trials or number < search.num_trials - 1:
                continue
            raise
        for name in ("plateau", "below"):
            if getattr(made.transition, name) is not None:
                raise UserError(
                    f"transition.{name}: depends on metrics, which are not known before the search; give the step at "
                    f"which trials would leave stage one with --transition-step N"
                )
        planned = TrialRecipe.of(made)
        trials.append(PlannedTrial(number, planned, _root(search.share, number, planned)))
    return trials


def _root(share: bool, number: int, recipe: TrialRecipe) -> str:
    return recipe.root_key({}, None if share else {"trial": number})


def _draws(search: SearchConfig) -> Iterator[dict[str, Any]]:
    """Values of one trial after another; as in Ray Tune, the grid whose name is first changes fastest."""
    rng = random.Random(search.sampling_seed)
    spaces = sorted(search.param_space.items(), reverse=True)
    grids = {name: domain for name, domain in spaces if isinstance(domain, Grid)}
    drawn = {name: domain for name, domain in search.param_space.items() if name not in grids}
    for _ in range(search.num_samples):
        for values in itertools.product(*(grid.listed for grid in grids.values())):
            draws = {name: domain.sample(rng) for name, domain in drawn.items()}
            yield {**dict(zip(grids, values, strict=True)), **draws}


def distinct_segments(trials: Sequence[PlannedTrial]) -> dict[str, Segment]:
    """What trials that all run to their ends train, by key."""
    return {segment.key: segment for trial in trials for segment in trial.walk()}


def simulate(
    search: SearchConfig, recipe: Recipe, trials: Sequence[PlannedTrial], num_gpus: int, costs: Costs, seed: int = 0
) -> Simulated:
    """Runs a search on a virtual clock, with sharing and without.

    Args:
        search: What is asked; how many worker groups there may be follows from `num_gpus`.
        recipe: The recipe before a trial's own values.
        trials: The search's trials.
        num_gpus: For all worker groups together.
        costs: Durations.
        seed: Of what is drawn where ASHA would compare trials.

    Raises:
        UserError: A worker group would never find room.
    """
    for trial in trials:
        for stage in STAGES:
            num_workers = trial.recipe.num_workers(stage)
            if num_workers > num_gpus:
                rule = f"must not be above the number of GPUs ({num_gpus})"
                raise UserError(f"{stage}.num_workers: {rule}, got {num_workers}; lower it or raise --gpus")

    def run(trials: Sequence[PlannedTrial], go_on: GoOn) -> Outcome:
        keep_from, _ = extremes(search, recipe, "transition.min_step")
        return Simulation(trials, num_gpus, search.max_concurrent_trials, keep_from, costs, go_on).run()

    shared = run(trials, _trial_scheduler(search, recipe, seed))
    ends = {number: walked[-1].end_step for number, walked in shared.walked.items()}
    alone = [replace(trial, root=_root(False, trial.number, trial.recipe)) for trial in trials]
    unshared = run(alone, lambda number, segment: segment.end_step < ends[number])
    distinct = {segment.key: segment for walked in shared.walked.values() for segment in walked}
    bound = sum(costs.gpu_seconds(segment) for segment in distinct.values())
    longest = max(sum(costs.seconds(segment) for segment in walked) for walked in shared.walked.values())
    return Simulated(shared, unshared, bound, max(longest, bound / num_gpus))


def _trial_scheduler(search: SearchConfig, recipe: Recipe, seed: int) -> GoOn:
    settings = search.trial_scheduler
    if settings.name not in ("fifo", "asha") or settings.promote:
        raise UserError(
            f"trial_scheduler.name: --simulate knows fifo and asha without promote, got {settings.name}"
            f"{' with promote' * settings.promote}; add trial_scheduler.name=fifo trial_scheduler.promote=false"
        )
    if settings.name == "fifo":
        return lambda number, segment: True
    return RandomRungs(settings, longest_trial(search, recipe).of(settings.time_attr), seed)


def _print_plan(console: Console, search: SearchConfig, trials: Sequence[PlannedTrial]) -> None:
    table = Table(title=f"{search.name}: {len(trials)} trials, all of them to their ends")
    for column in ("", "distinct segments", "distinct steps", "steps without sharing", "sharing factor"):
        table.add_column(column, justify="right")
    distinct = distinct_segments(trials).values()
    asked = [segment for trial in trials for segment in trial.walk()]
    for stages in ((FIRST_STAGE,), (SECOND_STAGE,), (FIRST_STAGE, SECOND_STAGE)):
        num_segments = sum(segment.stage in stages for segment in distinct)
        num_steps = sum(segment.num_steps for segment in distinct if segment.stage in stages)
        num_asked = sum(segment.num_steps for segment in asked if segment.stage in stages)
        name = "both" if len(stages) > 1 else stages[0].replace("_", " ")
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
