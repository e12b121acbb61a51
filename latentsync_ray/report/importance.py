"""How much each parameter of a search mattered, by Optuna's fANOVA (Hutter et al. 2014)."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from latentsync_ray.core.baselines import Role
from latentsync_ray.report.board import Board, Entry, distinct_values
from latentsync_ray.report.trials import TrialStatus
from latentsync_ray.report.words import value_text

_MIN_TRIALS = 8
_MAX_TRIALS = 200
"""Of the trials, evenly chosen: the forest takes time for each."""
_NUM_TREES, _SEED = 16, 0


@dataclass(frozen=True)
class Importance:
    """Shares of the metric's variance."""

    shares: Mapping[str, float] = field(default_factory=dict)
    """By parameter; empty if they cannot be told."""
    note: str = ""
    """What they rest on, or why there are none."""


def importance_of(board: Board) -> Importance:
    """How much each parameter mattered for the trials' last metric; trials that diverged or failed are left out."""
    entries = [entry for entry in board.started if _counts(board, entry)]
    names = [name for name in board.names if len(distinct_values(entries, name)) > 1]
    if len(names) < 2:
        return Importance(note="Needs two parameters with several values.")
    if len(entries) < _MIN_TRIALS:
        return Importance(note=f"Needs {_MIN_TRIALS} trials with a result; there are {len(entries)}.")
    missing = [extra for extra, module in (("optuna", "optuna"), ("pb2", "sklearn")) if not _is_there(module)]
    if missing:
        return Importance(note=f"Needs the extras that this says: pip install 'latentsync_ray[{','.join(missing)}]'.")
    chosen = entries[:: math.ceil(len(entries) / _MAX_TRIALS)]
    note = f"From {len(chosen)} trials at their last boundary; trials that diverged or failed are left out."
    return Importance(_fanova(board, chosen, names), note)


def _counts(board: Board, entry: Entry) -> bool:
    ended = entry.trial.status not in (TrialStatus.DIVERGED, TrialStatus.FAILED)
    return ended and entry.trial.role is Role.SEARCHED and math.isfinite(board.value(entry))


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _fanova(board: Board, entries: list[Entry], names: list[str]) -> dict[str, float]:
    """Optuna's importances of a study that these trials make up."""
    import optuna

    domains = {name: _distribution(optuna.distributions, distinct_values(entries, name)) for name in names}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize" if board.mode == "min" else "maximize")
    for entry in entries:
        params = {name: _value(entry.trial.config.get(name), domains[name], optuna) for name in names}
        trial = optuna.trial.create_trial(params=params, distributions=domains, value=board.value(entry))
        study.add_trial(trial)
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=_NUM_TREES, seed=_SEED)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in found.items()}


def _distribution(distributions: Any, values: list[Any]) -> Any:
    """Numbers keep their order; what is no number, or a truth value, has none."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        low, high = float(min(values)), float(max(values))
        return distributions.FloatDistribution(low, high, log=0 < 10 * low < high)
    return distributions.CategoricalDistribution([value_text(value) for value in values])


def _value(value: Any, domain: Any, optuna: Any) -> float | str:
    return float(value) if isinstance(domain, optuna.distributions.FloatDistribution) else value_text(value)
