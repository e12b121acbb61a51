"""What a search would train and cost: `latentsync-ray plan search_spaces/transition.yaml [key=value ...]`.

Step times are those of the storage's records; `--probe` measures them on this machine. Where a search adapts, the
least and the most are told. With `--simulate --gpus N` the whole search runs on a virtual clock. Nothing is trained.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.table import Table

from latentsync_ray.cli import run_cli
from latentsync_ray.config.domains import Grid
from latentsync_ray.config.errors import UserError
from latentsync_ray.config.recipe import FIRST_STAGE, SECOND_STAGE, Recipe
from latentsync_ray.config.search import POPULATION_SCHEDULERS, SearchConfig
from latentsync_ray.config.searchfiles import load_search
from latentsync_ray.core.baselines import baselines_of
from latentsync_ray.core.forecast import Forecast, Span, StageTimes
from latentsync_ray.core.segment import Segment
from latentsync_ray.core.training import Inputs, code_fingerprint, load_training
from latentsync_ray.core.trial_recipe import STAGES, TrialRecipe
from latentsync_ray.planning.forecast import Known, forecast
from latentsync_ray.planning.plan import Simulated, plan_trials, simulate
from latentsync_ray.planning.scenarios import Scenario, scenarios
from latentsync_ray.planning.simulation import Costs, PlannedTrial
from latentsync_ray.planning.stored import look
from latentsync_ray.store import Store
from latentsync_ray.usage import CommandParser


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line and prints the plan. Returns the exit status."""
    options = parser().parse_intermixed_args(arguments)
    search, recipe = load_search(options.search_space, options.overrides)
    console = Console(width=110)
    if options.simulate:
        _simulate(console, search, recipe, options)
        return 0
    store = Store(search.storage)
    given = {FIRST_STAGE: options.first_stage_seconds, SECOND_STAGE: options.second_stage_seconds}
    times = {stage: StageTimes(seconds, 0.0, 0) for stage, seconds in given.items() if seconds is not None}
    known = Known(times, options.startup_seconds or Known.startup_seconds, options.gpu_price)
    inputs = _inputs(store, recipe, options.probe)
    trials = _trials(search, recipe, inputs, options.transition_step)
    ways = scenarios(search, recipe, trials)
    if options.probe:
        assert inputs is not None
        known = replace(known, times={**_probed(inputs, store, ways.most), **times})
    known = look(store, ways, known, inputs is not None)
    if options.startup_seconds is not None:
        known = replace(known, startup_seconds=options.startup_seconds)
    print_forecast(console, search, forecast(search, recipe, ways, known), known)
    return 0


def _inputs(store: Store, recipe: Recipe, is_needed: bool) -> Inputs[Any] | None:
    """What the training reads, on which keys depend; None if nothing is stored, or it cannot be found."""
    if not is_needed and not store.list_folders("segments"):
        return None
    try:
        return load_training(recipe.training).prepare(recipe, store)
    except UserError as error:
        if is_needed:
            raise
        print(f"note: what is stored is not known: {error}")
        return None


def _trials(
    search: SearchConfig, recipe: Recipe, inputs: Inputs[Any] | None, transition_step: int | None
) -> list[PlannedTrial]:
    """The search's trials; with what the training reads, their keys are those of the store."""
    compared = () if transition_step is not None else baselines_of(search, recipe)
    if inputs is None:
        return plan_trials(search, recipe, transition_step, any_policy=True, compared=compared)
    fingerprints = {**inputs.fingerprints, **code_fingerprint(load_training(recipe.training))}

    def root_of(trial: TrialRecipe) -> str:
        return trial.root_key(fingerprints, {})

    ready = inputs.recipe
    return plan_trials(search, ready, transition_step, any_policy=True, root_of=root_of, compared=compared)


def _probed(inputs: Inputs[Any], store: Store, way: Scenario) -> dict[str, StageTimes]:
    """Times that are measured now; says what to paste into a recipe's `length`."""
    from latentsync_ray.engine.probe import probe  # needs torch, and only this does

    one_of_each: dict[str, Segment] = {}
    for segment in way.distinct:
        one_of_each.setdefault(segment.stage, segment)
    print("measuring a few steps of each stage", flush=True)
    times = probe(inputs, store, one_of_each.values())
    for stage, measured in times.items():
        print(f"{stage}: {measured.train_seconds:.3g} s a step, {measured.boundary_seconds:.3g} s a validation")
    if len(times) == len(STAGES):
        ratio = times[SECOND_STAGE].train_seconds / times[FIRST_STAGE].train_seconds
        print(f"relative costs for a recipe's length: {{cost: N, first_stage: 1.0, second_stage: {ratio:.3g}}}")
    return times


def _simulate(console: Console, search: SearchConfig, recipe: Recipe, options: argparse.Namespace) -> None:
    """Runs the whole search on a virtual clock, with sharing and without."""
    if options.gpus is None:
        raise UserError("--simulate: needs the number of GPUs; add for example --gpus 8")
    trials = plan_trials(search, recipe, options.transition_step)
    step_seconds = {
        FIRST_STAGE: options.first_stage_seconds or 1.0,
        SECOND_STAGE: options.second_stage_seconds or 1.0,
    }
    startup_seconds = options.startup_seconds or Known.startup_seconds
    costs = Costs(step_seconds, startup_seconds, search.workers.idle_seconds)
    simulated = simulate(search, recipe, trials, options.gpus, costs, options.seed)
    _print_simulated(console, search, trials, options.gpus, costs, simulated)


def parser() -> CommandParser:
    """The command's arguments."""
    made = CommandParser(
        "plan",
        "SPACE [key=value ...] [options]",
        "What a search would train and cost, from least to most. Nothing is trained.",
        ("search_spaces/transition.yaml --gpu-price 2.5", "SPACE --simulate --gpus 8"),
    )
    made.add_argument("search_space", metavar="SPACE", help="a file such as search_spaces/transition.yaml")
    made.add_argument("overrides", nargs="*", metavar="key=value", help="values of the search or of its recipe")
    made.add_argument("--probe", action="store_true", help="measure steps, if no records tell")
    made.add_argument("--gpu-price", type=_positive(float), metavar="P", help="of an hour of one GPU")
    made.add_argument("--transition-step", type=int, metavar="N", help="leave stage one there, whatever the policy")
    made.add_argument("--simulate", action="store_true", help="run the search on a virtual clock")
    made.add_argument("--gpus", type=_positive(int), metavar="N", help="GPUs (or CPU workers) in all, to simulate")
    made.add_argument("--first-stage-seconds", type=_positive(float), metavar="S", help="of a step of stage one")
    made.add_argument("--second-stage-seconds", type=_positive(float), metavar="S", help="of a step of stage two")
    made.add_argument("--startup-seconds", type=_positive(float), metavar="S", help="of a worker group (60)")
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


def print_forecast(console: Console, search: SearchConfig, plan: Forecast, known: Known) -> None:
    """Prints what a search would train and take, as a table of the least, a likely course and the most."""
    exact = plan.steps.is_exact
    columns = [""] if exact else ["least", "likely", "most"]
    table = Table(title=f"{search.name}: {plan.trials:,} trials")
    for column in ("", *columns):
        table.add_column(column, justify="right")
    for name, span, form in (
        ("steps of stage one", plan.first_stage_steps, "{:,.0f}"),
        ("steps of stage two", plan.second_stage_steps, "{:,.0f}"),
        ("both", plan.steps, "{:,.0f}"),
        ("without sharing", plan.steps_without_sharing, "{:,.0f}"),
        ("GPU hours", plan.gpu_hours, "{:,.3g}"),
        ("hours by the clock", plan.wall_hours, "{:,.3g}"),
        ("price", plan.price, "{:,.2f}"),
        ("GB written", _gigabytes(plan.bytes_written), "{:,.3g}"),
        ("GB kept", _gigabytes(plan.bytes_kept), "{:,.3g}"),
    ):
        if span is not None:
            values = [span.likely] if exact else [span.least, span.likely, span.most]
            table.add_row(name, *(form.format(value) for value in values))
    console.print(table)
    for line in _remarks(search, plan, known):
        print(line)


def _gigabytes(span: Span | None) -> Span | None:
    return None if span is None or span.most == 0 else span.times(1e-9)


def _remarks(search: SearchConfig, plan: Forecast, known: Known) -> list[str]:
    lines = []
    if plan.steps_stored:
        lines.append(f"stored already: {plan.steps_stored:,} of {plan.steps.most:,.0f} steps; hours are for the rest")
    if plan.gpu_hours is None:
        lines.append("how long steps take is not known here: --probe measures it")
    else:
        seconds = (("one", plan.first_stage_seconds), ("two", plan.second_stage_seconds))
        told = " and ".join(f"{value:.3g} s of stage {stage}" for stage, value in seconds if value is not None)
        lines.append(
            f"a step with its share of validation takes {told}, a worker group {known.startup_seconds:.3g} s to "
            f"start; {search.workers.max_groups} groups at most"
        )
    if not all(isinstance(domain, Grid) for domain in search.param_space.values()):
        lines.append(
            f"values that are no grid are drawn here, with seed {search.sampling_seed}; Ray Tune will draw other ones"
            "; what breaks a rule is left out"
        )
    if not plan.steps.is_exact:
        lines.append("a trial that diverges or fails ends sooner than the least says")
    if search.trial_scheduler.name in POPULATION_SCHEDULERS:
        lines.append("clones are set back or forward by an interval at most, as many as are the worst")
    return lines


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
