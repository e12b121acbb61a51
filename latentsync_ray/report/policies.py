"""Policies that would have left stage one where the best trial did: rules, replayed over its recorded curve."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import yaml

from latentsync_ray.config.plain import settings
from latentsync_ray.config.recipe import FIRST_STAGE, Recipe
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.config.transition import BelowConfig, PlateauConfig, TransitionConfig
from latentsync_ray.core.transition import Observation, should_transition
from latentsync_ray.report.trials import Boundary, TrialResult

MOST_POLICIES = 3
_MIN_DELTAS = (0.0, 0.01, 0.02, 0.05, 0.1)
_SMOOTHINGS = (0.0, 0.5)
_MOST_BOUNDARIES = 8
"""Of patience."""


@dataclass(frozen=True)
class Replayed:
    """A policy, and the step at which it would have left the curve; None if it would not have."""

    policy: TransitionConfig
    left_at: int | None


def replay(policy: TransitionConfig, curve: Sequence[Observation]) -> int | None:
    """The step at which a policy leaves a curve; None if it does not."""
    return next(
        (seen.global_step for end, seen in enumerate(curve, 1) if should_transition(policy, curve[:end])), None
    )


def policies_for(
    search: SearchConfig, recipe: Recipe, best: TrialResult, trials: Sequence[TrialResult]
) -> tuple[str, ...]:
    """At most three policies as YAML to paste into a recipe, the simplest first.

    Only those that leave at the best step where there are any, else those that leave next to it; a comment says it.

    Args:
        search: Its metric is tried first.
        recipe: Says which metrics a policy can read, and how long stage one may be.
        best: The best trial.
        trials: All; those that went further on its stage one lengthen the curve.
    """
    step = best.transition_step
    if not step:
        return ()
    curve = stage_one(best, trials)
    metrics = [name for name in _metrics(search, recipe) if all(name in seen.metrics for seen in curve)]
    every = recipe.first_stage.report_every_steps
    never = curve[-1].global_step + every
    rules = [*_plateaus(metrics, every, step), *_belows(metrics, curve, step)]
    found = [Replayed(rule, replay(rule, curve)) for rule in (dataclasses.replace(r, max_step=never) for r in rules)]
    left = [each for each in found if each.left_at is not None]
    nearest = min((abs(each.left_at - step) for each in left if each.left_at is not None), default=None)
    as_near = [each for each in left if each.left_at is not None and abs(each.left_at - step) == nearest]
    chosen: dict[tuple[str, str], Replayed] = {}
    for each in as_near:
        chosen.setdefault(_kind(each.policy), each)
    return tuple(_text(each, step, recipe.transition.max_step) for each in list(chosen.values())[:MOST_POLICIES])


def stage_one(best: TrialResult, trials: Sequence[TrialResult]) -> list[Observation]:
    """The longest recorded curve of stage one that goes through the boundary at which a trial left it."""
    own = _first_stage(best.results)
    longer = [_first_stage(trial.results) for trial in trials]
    through = [points for points in longer if any(point.key == own[-1].key for point in points)]
    longest = max([own, *through], key=len)
    return [Observation(point.global_step, point.metrics) for point in longest]


def _first_stage(points: Sequence[Boundary]) -> list[Boundary]:
    return [point for point in points if point.stage == FIRST_STAGE]


def _metrics(search: SearchConfig, recipe: Recipe) -> list[str]:
    """What a policy can read, the search's own metric first."""
    known = [name for name, metric in recipe.metrics_and_objective().items() if metric.mode == "min"]
    return sorted(known, key=lambda name: name != search.metric)


def _plateaus(metrics: Sequence[str], every: int, step: int) -> Iterator[TransitionConfig]:
    for metric, smoothing, boundaries, min_delta in itertools.product(
        metrics, _SMOOTHINGS, range(1, _MOST_BOUNDARIES + 1), _MIN_DELTAS
    ):
        if boundaries * every < step:
            condition = PlateauConfig(metric, boundaries * every, min_delta, smoothing)
            yield TransitionConfig(max_step=step, plateau=condition)


def _belows(metrics: Sequence[str], curve: Sequence[Observation], step: int) -> Iterator[TransitionConfig]:
    """A round value that a metric was first below at the best step, or failing that before it."""
    for metric in metrics:
        values = [seen.metrics[metric] for seen in curve if seen.global_step <= step]
        lowest = [index for index in range(1, len(values)) if values[index] < min(values[:index])]
        if lowest:
            at = lowest[-1]
            condition = BelowConfig(metric, _round_between(values[at], min(values[:at])))
            yield TransitionConfig(max_step=step, below=condition)


def _round_between(low: float, high: float) -> float:
    """The number with the fewest digits above one number and at most another."""
    for digits in range(1, 17):
        middle = float(f"{(low + high) / 2:.{digits}g}")
        if low < middle <= high:
            return middle
    return high


def _kind(policy: TransitionConfig) -> tuple[str, str]:
    """Policies that differ in numbers alone say the same."""
    if policy.plateau is not None:
        return "plateau", policy.plateau.metric
    assert policy.below is not None
    return "below", policy.below.metric


def _text(replayed: Replayed, step: int, max_step: int) -> str:
    """YAML of a recipe's section, with a comment that says where it leaves."""
    assert replayed.left_at is not None
    off = replayed.left_at - step
    where = "as the best trial did" if not off else f"{abs(off)} steps {'after' if off > 0 else 'before'} the best"
    condition: Mapping[str, object] = {
        name: settings(value)
        for name, value in (("plateau", replayed.policy.plateau), ("below", replayed.policy.below))
        if value is not None
    }
    section = {"transition": {**condition, "max_step": max_step}}
    return f"# leaves stage one at step {replayed.left_at}, {where}\n{yaml.safe_dump(section, sort_keys=False)}"
