"""What candidates are compared by: the search's metric of each pair of a validation sample and its noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from latentsync_ray.config.recipe import OBJECTIVE, Recipe
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.core.terms import Terms
from latentsync_ray.report.candidates import Candidate
from latentsync_ray.report.samples import Floats
from latentsync_ray.report.trials import TrialResult
from latentsync_ray.store import DamagedEntryError, Store

TermsOf: TypeAlias = Callable[[str], Terms | None]
"""The stored terms at the end of a segment, by its key."""
LEAST_CLUSTERS = 3
"""Of fewer groups of clips, or of fewer clips, an interval is so wide that it says nothing (`make coverage`)."""
_ROUNDING = 1e-3
"""Share by which the mean of terms may differ from the metric."""


def stored_terms(store: Store) -> TermsOf:
    """The terms that a store has kept; what is damaged counts as missing, since an answer can be had without."""

    def terms_of(key: str) -> Terms | None:
        try:
            record = store.read_record(key)
            return None if record is None else store.read_terms(record)
        except DamagedEntryError:
            return None

    return terms_of


class Pairs:
    """The metric of each pair, negated where more of it is better.

    Args:
        search: Its metric and mode.
        recipe: Weights the terms of `val/objective`.
        terms_of: The stored terms.
    """

    def __init__(self, search: SearchConfig, recipe: Recipe, terms_of: TermsOf):
        self._metric, self._sign = search.metric, 1 if search.mode == "min" else -1
        self._weights = recipe.objective() if search.metric == OBJECTIVE else {search.metric: 1.0}
        self._terms_of = terms_of
        self._first: Terms | None = None

    def mean(self, candidate: Candidate) -> Floats | None:
        """(N,) over the candidate's trials; None where one of them has no terms on the same pairs as all others."""
        rows = [self._row(trial) for trial in candidate.trials]
        known = [row for row in rows if row is not None]
        return np.mean(known, axis=0) if len(known) == len(rows) else None

    @property
    def clusters(self) -> Sequence[str] | None:
        """What is independent, of each pair: groups where there are enough, else clips; None if these are too few."""
        terms = self._first
        found = () if terms is None else (terms.groups, terms.clips)
        return next((names for names in found if len(set(names)) >= LEAST_CLUSTERS), None)

    @property
    def num_clips(self) -> int:
        """Recordings that the pairs are from."""
        return len(set(self._first.clips)) if self._first else 0

    @property
    def num_groups(self) -> int:
        """Groups that the recordings are from."""
        return len(set(self._first.groups)) if self._first else 0

    def _row(self, trial: TrialResult) -> Floats | None:
        terms = self._terms_of(trial.key) if trial.key is not None else None
        if terms is None or any(name not in terms.values for name in self._weights):
            return None
        self._first = self._first or terms
        if (list(terms.clips), list(terms.groups)) != (list(self._first.clips), list(self._first.groups)):
            return None
        columns = (weight * np.asarray(terms.values[name], float) for name, weight in self._weights.items())
        row: Floats = np.sum(list(columns), axis=0)
        # A metric need not be the mean of what is stored under its name.
        same = np.isclose(row.mean(), trial.metrics[self._metric], rtol=_ROUNDING, atol=0)
        return self._sign * row if same else None
