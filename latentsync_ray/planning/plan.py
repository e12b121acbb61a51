"""What a search would train: its trials before they run, and the whole search on a virtual clock."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from latentsync_ray.config.domains import Grid
from latentsync_ray.config.errors import UserError
from latentsync_ray.config.lengths import extremes, longest_trial
from latentsync_ray.config.loading import Variants, with_overrides
from latentsync_ray.config.maximin import maximin_draws
from latentsync_ray.config.plain import Settings
from latentsync_ray.config.recipe import Recipe
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.core.baselines import Asked
from latentsync_ray.core.segment import Segment
from latentsync_ray.core.trial_recipe import STAGES, TrialRecipe
from latentsync_ray.planning.simulation import Costs, GoOn, Outcome, PlannedTrial, RandomRungs, Simulation


@dataclass(frozen=True)
class Plan:
    """The trials of a search, all of them to their ends."""

    search: SearchConfig
    """What is searched, and how."""
    trials: Sequence[PlannedTrial]
    """In the order in which Ray Tune creates them."""

    @cached_property
    def segments(self) -> dict[str, Segment]:
        """The distinct segments by key: what is trained."""
        return {segment.key: segment for trial in self.trials for segment in trial.walk()}

    def distinct_steps(self, *stages: str) -> int:
        """Steps of distinct segments, of some stages or of both."""
        return sum(s.num_steps for s in self.segments.values() if s.stage in (stages or STAGES))

    def steps_without_sharing(self, *stages: str) -> int:
        """Steps that trials would train if each trained everything by itself."""
        wanted = stages or STAGES
        return sum(s.num_steps for trial in self.trials for s in trial.walk() if s.stage in wanted)


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


def plan_trials(
    search: SearchConfig,
    recipe: Recipe,
    transition_step: int | None = None,
    *,
    any_policy: bool = False,
    root_of: Callable[[TrialRecipe], str] | None = None,
    compared: Sequence[Asked] = (),
) -> list[PlannedTrial]:
    """The trials of a search, in the order in which Ray Tune creates them.

    Args:
        search: Its grids are exact. Other values are drawn here with its sampling seed; Ray Tune draws other ones. A
            draw that breaks a rule is left out, since its trial fails before it trains.
        recipe: The recipe before a trial's own values.
        transition_step: Where all trials leave stage one, instead of what their policies say.
        any_policy: Whether a policy may read metrics; such trials cannot be walked.
        root_of: Key of the state before a trial's first step; without it, one that no store has.
        compared: Baselines, whose numbers follow those of the search's own trials.

    Raises:
        UserError: A policy reads metrics, which nobody knows before, or values break a rule.
    """
    fixed: Settings = {}
    if transition_step is not None:
        fixed = {"transition.plateau": None, "transition.below": None, "transition.at_step": transition_step}
        with_overrides(recipe, fixed, "--transition-step")
    variants = Variants(recipe)
    trials: list[PlannedTrial] = []
    beside = ((number, asked.values) for number, asked in enumerate(compared, search.num_trials))
    for number, values in itertools.chain(enumerate(_draws(search)), beside):
        try:
            made = variants.recipe({**values, **fixed})
        except UserError:
            if trials or number < search.num_trials - 1:
                continue
            raise
        for name in ("plateau", "below"):
            if not any_policy and getattr(made.transition, name) is not None:
                raise UserError(
                    f"transition.{name}: depends on metrics, which are not known before the search; give the step at "
                    f"which trials would leave stage one with --transition-step N"
                )
        planned = TrialRecipe.of(made)
        root = root_of(planned) if root_of is not None and search.share else _root(search.share, number, planned)
        trials.append(PlannedTrial(number, planned, root))
    return trials


def _root(share: bool, number: int, recipe: TrialRecipe) -> str:
    return recipe.root_key({}, None if share else {"trial": number})


def _draws(search: SearchConfig) -> Iterator[Settings]:
    """Values of one trial after another; as in Ray Tune, the grid whose name is first changes fastest."""
    if search.search_alg == "maximin":
        yield from maximin_draws(search.param_space, search.num_samples, search.sampling_seed)
        return
    rng = random.Random(search.sampling_seed)
    spaces = sorted(search.param_space.items(), reverse=True)
    grids = {name: domain for name, domain in spaces if isinstance(domain, Grid)}
    drawn = {name: domain for name, domain in search.param_space.items() if name not in grids}
    for _ in range(search.num_samples):
        for values in itertools.product(*(grid.listed for grid in grids.values())):
            draws = {name: domain.sample(rng) for name, domain in drawn.items()}
            yield {**dict(zip(grids, values, strict=True)), **draws}


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
    return RandomRungs(settings, longest_trial(search, recipe).of(settings.time_attr), recipe.length, seed)
