"""The answer of a search in words, the most important first."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Iterator, Sequence

from latentsync_ray.config.domains import Choice, Grid
from latentsync_ray.config.plain import Plain
from latentsync_ray.config.recipe import Recipe
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.core.baselines import Role
from latentsync_ray.report.answer import Difference, NextCommand, ParameterAnswer
from latentsync_ray.report.next_commands import CONFIRM, WIDER
from latentsync_ray.report.ranges import is_high
from latentsync_ray.report.ranking import Ranking
from latentsync_ray.report.trials import TrialResult, TrialStatus
from latentsync_ray.report.words import interval_text, listed, percent_text, short_text

_THRESHOLD = "transition.at_step"
_RATES = {
    "first_stage.optimizer.lr": "first-stage learning rate",
    "second_stage.optimizer.lr": "second-stage learning rate",
}
_MOST_LISTED = 3
"""Drawn values of a parameter; more are told as ranges of values tried."""


def leaving(search: SearchConfig, recipe: Recipe, ranking: Ranking) -> str:
    """Where to leave stage one, and which other steps cannot be told from that."""
    candidates, best = ranking.candidates, ranking.candidates[ranking.best]
    steps = [candidate.transition_step for candidate in candidates]
    step, never = steps[ranking.best], ranking.differences.get(Role.NEVER)
    if never is not None and step is not None and _is_worse(search, never):
        worse = never if search.mode == "min" else Difference(-never.relative, -never.high, -never.low)
        told = f"the best trial that leaves it, at step {step}, is worse by {interval_text(worse).lstrip('+')}"
        return f"Never leaving stage one is best: {told} {_where(recipe, ranking)}."
    advice = (
        "Never leave stage one" if step is None else f"Leave stage one at step {step}" if step else "Skip stage one"
    )
    if not ranking.num_pairs:
        value = f"{search.metric} {short_text(best.mean(search.metric))}"
        return f"{advice} ({value}); how sure that is is not known, since {ranking.why_unsure}."
    order = sorted(set(steps), key=lambda each: math.inf if each is None else each)
    tied = [each for each in order if each in {steps[index] for index in ranking.tied}]
    if len(order) == 1:
        return f"{advice}."
    if len(tied) == 1:
        return f"{advice}; the other steps tried are worse {_where(recipe, ranking)}."
    if len(tied) == len(order) > 2:
        every = f"none of the {len(order)} steps tried, {_step_text(order[0])} to {_step_text(order[-1])},"
        return f"{advice}, but {every} can be told from the others {_where(recipe, ranking)}."
    if len(tied) > 2 and order.index(tied[-1]) - order.index(tied[0]) == len(tied) - 1:
        these = f"{_step_text(tied[0])} to {_step_text(tied[-1])}"
        return f"{advice}; {these} cannot be told apart {_where(recipe, ranking)}."
    others = listed([_step_text(each) for each in tied if each != step])
    return f"{advice}; {others} cannot be told from it {_where(recipe, ranking)}."


def values(search: SearchConfig, ranking: Ranking, parameters: Sequence[ParameterAnswer]) -> Iterator[str]:
    """A sentence for each parameter but the step at which to leave."""
    for parameter in parameters:
        if parameter.name == _THRESHOLD:
            continue
        is_listed = isinstance(search.param_space[parameter.name], Grid | Choice)
        about = "about " if isinstance(parameter.best, float) else ""
        told = f"{_capital(_RATES.get(parameter.name, parameter.name))} {about}{short_text(parameter.best)}"
        others = [value for value in parameter.tied if value != parameter.best]
        more = []
        if others:
            more.append(f"{_some(others, parameter.worse + parameter.diverged, is_listed)} cannot be told from it")
        if parameter.diverged:
            told_of = _some(parameter.diverged, parameter.tied + parameter.worse, is_listed)
            more.append(f"{told_of} diverge{'s' * (len(parameter.diverged) == 1)}")
        yield "; ".join([told, ", ".join(more)] if more else [told]) + "."


def differences(search: SearchConfig, ranking: Ranking) -> Iterator[str]:
    """How much the best differs from each baseline."""
    best, metric = ranking.candidates[ranking.best], search.metric
    others = {role: baseline for role, baseline in ranking.baselines.items() if baseline is not best}
    sure = [
        f"against {role}: {interval_text(ranking.differences[role])}"
        for role in others
        if role in ranking.differences
    ]
    unsure = [
        f"against {role}: {percent_text(best.mean(metric) / baseline.mean(metric) - 1)}"
        for role, baseline in others.items()
        if role not in ranking.differences and baseline.mean(metric) > 0
    ]
    if sure:
        corrected = f"95 % intervals, corrected for the choice among {len(ranking.candidates)}"
        yield f"{_capital('; '.join(sure))} ({metric}; {corrected})."
    if unsure:
        yield f"{_capital('; '.join(unsure))} ({metric}, without intervals)."
    for role in ranking.baselines:
        found = ranking.differences.get(role)
        if role not in others:
            yield f"These values are {role}."
        elif found is not None and _is_worse(search, found) and role != Role.NEVER:
            yield f"So nothing that was searched is as good as {role}."
        elif found is not None and found.low <= 0 <= found.high and role == Role.NEVER:
            yield "So it cannot be said that leaving stage one helps."


def edges(
    search: SearchConfig, parameters: Sequence[ParameterAnswer], commands: Sequence[NextCommand]
) -> Iterator[str]:
    """Which best values lie at an edge, with the command that goes on beyond it if that is possible."""
    command = next((command.command for command in commands if command.purpose == WIDER), "")
    beyond = False
    for parameter in parameters:
        if parameter.at_edge:
            end = "largest" if is_high(search.param_space[parameter.name], parameter.best) else "smallest"
            value = f"{parameter.name} {short_text(parameter.best)}"
            can_go_on = f"param_space.{parameter.name}=" in command
            beyond = beyond or can_go_on
            yield f"{value} is the {end} that was tried{': a better one may lie beyond it' * can_go_on}."
    if beyond:
        yield f"To {WIDER}: {command}"


def limits(
    search: SearchConfig,
    recipe: Recipe,
    trials: Sequence[TrialResult],
    ranking: Ranking,
    commands: Sequence[NextCommand],
) -> Iterator[str]:
    """What the answer does not say."""
    best = ranking.candidates[ranking.best]
    steps = [trial.global_step for candidate in ranking.candidates for trial in candidate.trials]
    if recipe.length is None and min(steps) < max(steps):
        yield (
            f"Trials had {min(steps)} to {max(steps)} steps in all, so that a part of each difference comes from "
            "more training; the recipe's `length` makes them equal."
        )
    num_stopped = sum(trial.status == TrialStatus.STOPPED for trial in trials)
    if num_stopped:
        name = search.trial_scheduler.name
        yield f"{num_stopped} of {search.num_trials} trials were stopped early by {name} and are not compared."
    if best.is_confirmed:
        num_confirmed = sum(candidate.is_confirmed for candidate in ranking.candidates)
        again = f"trained again {num_confirmed} of the best values under {len(best.trials)} other seeds"
        yield f"The search has {again}, and judges them by the means of these trainings."
    elif len(best.trials) > 1:
        yield f"Values are judged by their means over {len(best.trials)} seeds."
    elif any(command.purpose == CONFIRM for command in commands):
        yield "All trials had the same seed: whether others agree is not known."


def _is_worse(search: SearchConfig, difference: Difference) -> bool:
    """Whether the best trial is worse than a baseline for certain."""
    return difference.low > 0 if search.mode == "min" else difference.high < 0


def _where(recipe: Recipe, ranking: Ranking) -> str:
    """The clips that an answer rests on. LatentSync's groups are speakers."""
    kind = "speakers" if recipe.training == Recipe.training else "groups"
    groups = f" of {ranking.num_groups} {kind}" if 1 < ranking.num_groups < ranking.num_clips else ""
    return f"on these {ranking.num_clips} clips{groups}"


def _some(found: Sequence[Plain], others: Sequence[Plain], is_listed: bool) -> str:
    """Some values of a parameter; of many that were drawn, ranges in which no other value was tried.

    Args:
        found: These.
        others: Values that were tried, and of which something else is true.
        is_listed: Whether the search space lists them, so that all are told.
    """
    numbers, between = sorted(_numbers(found)), sorted(_numbers(others))
    if len(found) <= _MOST_LISTED or len(numbers) < len(found) or is_listed:
        return listed([short_text(value) for value in found])
    ranges: dict[int, list[float]] = {}
    for number in numbers:
        ranges.setdefault(bisect(between, number), []).append(number)
    if len(ranges) > _MOST_LISTED:
        low, high = numbers[0], numbers[-1]
        num_tried = len(numbers) + sum(low < number < high for number in between)
        return f"{len(numbers)} of the {num_tried} values tried from {short_text(low)} to {short_text(high)}"
    return listed([" to ".join(dict.fromkeys((short_text(one[0]), short_text(one[-1])))) for one in ranges.values()])


def _numbers(values: Sequence[Plain]) -> list[int | float]:
    return [value for value in values if isinstance(value, int | float)]


def _step_text(step: int | None) -> str:
    return "never" if step is None else str(step)


def _capital(text: str) -> str:
    """A sentence's beginning; names of settings stay as they are."""
    return text if "." in text.split()[0] else text[:1].upper() + text[1:]
