"""Ways in which a search may go: where trials leave stage one and which go on, from the fewest steps to the most."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from latentsync_ray.config.domains import Grid
from latentsync_ray.config.lengths import extremes, longest_trial
from latentsync_ray.config.recipe import FIRST_STAGE, Recipe
from latentsync_ray.config.search import POPULATION_SCHEDULERS, SearchConfig, TrialSchedulerConfig
from latentsync_ray.config.transition import TransitionConfig
from latentsync_ray.core.hashing import digest
from latentsync_ray.core.segment import Segment
from latentsync_ray.core.trial_recipe import TrialRecipe
from latentsync_ray.planning.simulation import GoOn, PlannedTrial, RandomRungs

_AT_STEP = "transition.at_step"


@dataclass(frozen=True)
class Scenario:
    """One way in which a search may go."""

    trials: Sequence[PlannedTrial]
    """With the steps at which they leave stage one."""
    go_on: Callable[[], GoOn]
    """Makes the trial scheduler's decisions."""
    extra_steps: float = 0.0
    """Steps of stage two besides, of trials that became clones; below 0 for those that they skip."""

    @cached_property
    def distinct(self) -> list[Segment]:
        """What is trained, if trials go one after another."""
        goes_on, found = self.go_on(), {}
        for trial in self.trials:
            found.update({segment.key: segment for segment in _until(trial.walk(), goes_on, trial.number)})
        return list(found.values())


def _until(segments: Iterator[Segment], goes_on: GoOn, trial: int) -> Iterator[Segment]:
    for segment in segments:
        yield segment
        if not goes_on(trial, segment):
            return


@dataclass(frozen=True)
class Scenarios:
    """What a search may come to."""

    fewest: tuple[Scenario, ...]
    """All trials leave stage one as soon, or as late, as they may: one of these has the fewest steps of any."""
    likely: Scenario
    """Trials leave at different steps, and comparisons are drawn."""
    most: Scenario
    """None has more steps."""


def scenarios(search: SearchConfig, recipe: Recipe, trials: Sequence[PlannedTrial]) -> Scenarios:
    """What a search may come to; one and the same scenario where it does not adapt.

    Args:
        search: What is asked.
        recipe: The recipe before a trial's own values.
        trials: The search's trials, whatever their policies.
    """
    bounds = {trial.number: _leaves(search, recipe, trial.recipe) for trial in trials}
    soonest = [leaving(trial, bounds[trial.number][0]) for trial in trials]
    if search.trial_scheduler.name == "fifo" and all(first == last for first, last, _ in bounds.values()):
        only = Scenario(soonest, lambda: _all_go_on)
        return Scenarios((only,), only, only)
    latest = [leaving(trial, bounds[trial.number][1]) for trial in trials]
    spread = [leaving(trial, _evenly(trial, bounds, len(trials))) for trial in trials]
    more = _clones_steps(search, recipe)
    return Scenarios(
        fewest=tuple(_fewest(search, recipe, at) for at in (soonest, latest)),
        likely=Scenario(spread, _likely_rule(search, recipe)),
        most=Scenario(_apart(trials, bounds), lambda: _all_go_on, more),
    )


def leaving(trial: PlannedTrial, step: int) -> PlannedTrial:
    """The trial with another transition: at a step, whatever its policy says."""
    policy = trial.recipe.decisions.transition
    if policy.earliest_step == policy.latest_step == step:
        return trial
    transition = TransitionConfig(max_step=max(step, 1), at_step=step)
    decisions = replace(trial.recipe.decisions, transition=transition)
    return replace(trial, recipe=replace(trial.recipe, decisions=decisions))


def _leaves(search: SearchConfig, recipe: Recipe, trial: TrialRecipe) -> tuple[int, int, int]:
    """The first and the last boundary at which a trial may leave stage one, and the steps between boundaries."""
    policy, every = trial.decisions.transition, trial.report_every_steps(FIRST_STAGE)
    first, last = policy.earliest_step, policy.latest_step
    domain = search.param_space.get(_AT_STEP)
    if domain is not None and not isinstance(domain, Grid) and policy.at_step is not None:
        low, high = extremes(search, recipe, _AT_STEP)
        first, last = (low if first == policy.at_step else first), (high if last == policy.at_step else last)
    return _boundary(first, every), _boundary(last, every), every


def _boundary(step: int, every: int) -> int:
    return math.ceil(step / every) * every


def _evenly(trial: PlannedTrial, bounds: dict[int, tuple[int, int, int]], num_trials: int) -> int:
    """A step between the bounds; all trials together are spread over them."""
    first, last, every = bounds[trial.number]
    return first + round((last - first) / every * (trial.number + 0.5) / num_trials) * every


def _apart(trials: Sequence[PlannedTrial], bounds: dict[int, tuple[int, int, int]]) -> list[PlannedTrial]:
    """Trials that share as little as they can: one leaves last, and of equal ones each leaves at another step."""
    longest = max(trials, key=lambda trial: bounds[trial.number][1]).number
    num_alike: defaultdict[str, int] = defaultdict(int)
    made = []
    for trial in trials:
        first, last, every = bounds[trial.number]
        alike = digest([trial.root, trial.recipe.stages])
        step = last if trial.number == longest else min(last, first + num_alike[alike] * every)
        num_alike[alike] += trial.number != longest
        made.append(leaving(trial, step))
    return made


def _all_go_on(trial: int, segment: Segment) -> bool:
    return True


def _fewest(search: SearchConfig, recipe: Recipe, trials: Sequence[PlannedTrial]) -> Scenario:
    """All trials but the cheapest end where the scheduler may first stop one."""
    name = search.trial_scheduler.name
    if name == "fifo" or name in POPULATION_SCHEDULERS:
        return Scenario(trials, lambda: _all_go_on, -_clones_steps(search, recipe))
    rungs = _rungs(search, recipe)

    def left(trial: PlannedTrial) -> int:
        return sum(s.num_steps for s in trial.walk()) - sum(s.num_steps for s in _until(trial.walk(), rungs(), 0))

    kept = min((trial for trial in trials if trial.number < search.num_trials), key=left).number
    return Scenario(trials, lambda: _beside_go_on(search, _one_goes_on(kept, rungs())))


def _beside_go_on(search: SearchConfig, rule: GoOn) -> GoOn:
    """The scheduler's rule for the search's own trials; baselines run to their ends."""
    return lambda trial, segment: trial >= search.num_trials or rule(trial, segment)


def _one_goes_on(kept: int, rungs: Rungs) -> GoOn:
    return lambda trial, segment: trial == kept or rungs(trial, segment)


def _likely_rule(search: SearchConfig, recipe: Recipe) -> Callable[[], GoOn]:
    if search.trial_scheduler.name not in ("asha", "hyperband"):
        return lambda: _all_go_on
    settings, longest = _as_asha(search, recipe)
    return lambda: _beside_go_on(search, RandomRungs(settings, longest, recipe.length, seed=0))


class Rungs(RandomRungs):
    """ASHA's rungs at which no trial passes."""

    def passes(self, segment: Segment, values: list[float]) -> bool:
        """Never."""
        return False


def _rungs(search: SearchConfig, recipe: Recipe) -> Callable[[], Rungs]:
    settings, longest = _as_asha(search, recipe)
    return lambda: Rungs(settings, longest, recipe.length, seed=0)


def _as_asha(search: SearchConfig, recipe: Recipe) -> tuple[TrialSchedulerConfig, float]:
    """HyperBand's first bracket as rungs, whose lowest is where its cohort is first halved; ASHA as it is."""
    settings = search.trial_scheduler
    longest = longest_trial(search, recipe).of(settings.time_attr)
    if settings.name != "hyperband":
        return settings, longest
    num_rungs = round(math.log(longest) / math.log(settings.reduction_factor))
    grace = max(1, int(longest * settings.reduction_factor**-num_rungs))
    return replace(settings, grace_period=grace), longest


def _clones_steps(search: SearchConfig, recipe: Recipe) -> float:
    """Most steps that clones train again or skip: at each interval the worst trials, by an interval each."""
    settings = search.trial_scheduler
    if settings.name not in POPULATION_SCHEDULERS:
        return 0.0
    num_clones = math.ceil(settings.quantile_fraction * search.num_trials)
    return num_clones * longest_trial(search, recipe).second_stage
