"""Candidates of a search: values that trials were trained with to their end, under one seed or several."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from latentsync_ray.config.plain import Parameters
from latentsync_ray.config.search import POPULATION_SCHEDULERS, SEEDS, SearchConfig
from latentsync_ray.core.baselines import Role
from latentsync_ray.report.trials import TrialResult, TrialStatus


@dataclass(frozen=True)
class Candidate:
    """Values, and the trainings whose mean is what they are worth."""

    values: Parameters
    """Without seeds."""
    number: int
    """Of the trial that stands for it: the one nearest to the mean, never the luckiest."""
    trials: tuple[TrialResult, ...]
    """Those that the mean is over. Where there are confirming ones, these alone: the first one was chosen for its
    luck."""
    all_trials: tuple[TrialResult, ...]
    """These, and those that the mean leaves out."""

    def mean(self, metric: str) -> float:
        """The mean of a metric at the ends of its trials."""
        return math.fsum(trial.metrics[metric] for trial in self.trials) / len(self.trials)

    @property
    def searched(self) -> tuple[int, ...]:
        """Numbers of the search's own trials among them."""
        return tuple(trial.number for trial in self.all_trials if trial.role == Role.SEARCHED)

    @property
    def transition_step(self) -> int | None:
        """Where the trial that stands for it has left stage one, if it has."""
        return next(trial.transition_step for trial in self.all_trials if trial.number == self.number)

    @property
    def is_confirmed(self) -> bool:
        """Whether it was trained again after it was chosen."""
        return self.trials[0].role == Role.CONFIRMING


def candidates(search: SearchConfig, trials: Iterable[TrialResult]) -> list[Candidate]:
    """The candidates of a search in the order of their first trials.

    Args:
        search: What was asked.
        trials: Baselines, and trials without a finite result at their end, are left out.
    """
    groups: dict[str, list[TrialResult]] = {}
    for trial in trials:
        if trial.role in (Role.SEARCHED, Role.CONFIRMING) and has_result(search, trial):
            groups.setdefault(_identity(search, trial), []).append(trial)
    made = (_candidate(search, group) for group in groups.values())
    return [candidate for candidate in made if candidate is not None]


def has_result(search: SearchConfig, trial: TrialResult) -> bool:
    """Whether a trial has run to its end, and has a finite metric there."""
    return trial.status == TrialStatus.FINISHED and math.isfinite(trial.metrics.get(search.metric, math.nan))


def without_seeds(values: Parameters) -> Parameters:
    """The values that say something about a recipe."""
    return {name: value for name, value in values.items() if name not in SEEDS}


def best_candidate(search: SearchConfig, found: Sequence[Candidate]) -> int | None:
    """Index of the candidate with the best mean, among confirmed ones where there are any; None without one."""
    sign = 1 if search.mode == "min" else -1
    confirmed = [index for index, candidate in enumerate(found) if candidate.is_confirmed]
    return min(
        confirmed or range(len(found)),
        key=lambda index: (sign * found[index].mean(search.metric), found[index].number),
        default=None,
    )


def _identity(search: SearchConfig, trial: TrialResult) -> str:
    """What trials of one candidate have in common. Members of a population have ways of their own."""
    own = trial.number if search.trial_scheduler.name in POPULATION_SCHEDULERS else None
    return json.dumps([own, dict(without_seeds(trial.config))], sort_keys=True)


def _candidate(search: SearchConfig, group: Sequence[TrialResult]) -> Candidate | None:
    by_key: dict[str | None, TrialResult] = {}
    for trial in group:
        by_key.setdefault(trial.key, trial)  # equal keys are one training
    searched = [trial for trial in by_key.values() if trial.role == Role.SEARCHED]
    if not searched:
        return None
    confirming = [trial for trial in by_key.values() if trial.role == Role.CONFIRMING]
    chosen = tuple(confirming or searched)
    middle = math.fsum(trial.metrics[search.metric] for trial in chosen) / len(chosen)
    nearest = min(searched, key=lambda trial: (abs(trial.metrics[search.metric] - middle), trial.number))
    return Candidate(without_seeds(nearest.config), nearest.number, chosen, tuple(group))
