"""What a search says about each of its parameters."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from latentsync_ray.config.domains import Domain
from latentsync_ray.config.plain import Plain
from latentsync_ray.config.search import SEEDS, SearchConfig
from latentsync_ray.core.baselines import Role
from latentsync_ray.report.answer import ParameterAnswer
from latentsync_ray.report.ranges import at_edge
from latentsync_ray.report.ranking import Ranking
from latentsync_ray.report.trials import TrialResult, TrialStatus

_JUDGED = (TrialStatus.FINISHED, TrialStatus.STOPPED, TrialStatus.DIVERGED)


def parameter_answers(
    search: SearchConfig, trials: Sequence[TrialResult], ranking: Ranking
) -> tuple[ParameterAnswer, ...]:
    """An answer for each parameter but seeds, in the order of the search space.

    Args:
        search: What was asked.
        trials: All of them.
        ranking: Of the candidates.
    """
    judged = [trial for trial in trials if trial.role == Role.SEARCHED and trial.status in _JUDGED]
    return tuple(
        _answer(name, domain, judged, ranking) for name, domain in search.param_space.items() if name not in SEEDS
    )


def _answer(name: str, domain: Domain, judged: Sequence[TrialResult], ranking: Ranking) -> ParameterAnswer:
    best = ranking.candidates[ranking.best].values.get(name)
    tied = [ranking.candidates[index].values.get(name) for index in ranking.tied]
    others = [trial.config.get(name) for trial in judged if trial.status != TrialStatus.DIVERGED]
    diverged = [trial.config.get(name) for trial in judged if trial.status == TrialStatus.DIVERGED]
    return ParameterAnswer(
        name,
        best,
        tied=_in_order(domain, tied),
        worse=_in_order(domain, _without(others, tied)),
        diverged=_in_order(domain, _without(diverged, [*others, *tied])),
        at_edge=at_edge(domain, best),
    )


def _without(values: Iterable[Plain], those: Iterable[Plain]) -> list[Plain]:
    known = {json.dumps(value) for value in those}
    return [value for value in values if json.dumps(value) not in known]


def _in_order(domain: Domain, values: Iterable[Plain]) -> tuple[Plain, ...]:
    """Each value once: numbers by size, others as the search space lists them."""
    distinct = {json.dumps(value): value for value in values}
    listed = [json.dumps(value) for value in domain.values()]

    def place(text: str) -> tuple[int, float, str]:
        value = distinct[text]
        if isinstance(value, int | float) and not isinstance(value, bool):
            return 0, value, ""
        return 1, listed.index(text) if text in listed else len(listed), text

    return tuple(distinct[text] for text in sorted(distinct, key=place))
