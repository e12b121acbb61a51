"""The search algorithms: Ray Tune's own, with suggestions journaled where they depend on results."""

from __future__ import annotations

import importlib.util
from typing import Any

from ray import tune
from ray.tune.search import ConcurrencyLimiter, SearchAlgorithm, Searcher, SearchGenerator
from ray.tune.search.basic_variant import BasicVariantGenerator

from latentsync_ray.config.domains import Choice, Domain, Grid, LogUniform, RandInt, Uniform
from latentsync_ray.config.errors import UserError
from latentsync_ray.config.maximin import maximin_draws
from latentsync_ray.config.plain import Parameters, Settings
from latentsync_ray.config.search import PAUSING_SCHEDULERS, SearchConfig
from latentsync_ray.core.hashing import digest
from latentsync_ray.search.entries import Suggestion
from latentsync_ray.search.journal import Journal
from latentsync_ray.search.reported import TuneResult
from latentsync_ray.search.trial import TRIAL_NUMBER

_MOST_RANDOM_SUGGESTIONS = 10
"""Optuna's own number of suggestions that it draws before it learns; of a small search that would be nearly all."""


def make_search_algorithm(search: SearchConfig, journal: Journal) -> SearchAlgorithm:
    """The search algorithm that a search asks for.

    Where trials pause there is no limit to how many are alive at once: Ray Tune counts paused ones, and would wait
    for ever for them to end.

    Raises:
        UserError: The library that it needs is not installed.
    """
    limit = 0 if pauses(search) else search.max_concurrent_trials
    if search.search_alg == "random":
        return BasicVariantGenerator(max_concurrent=limit, random_state=search.sampling_seed)
    if search.search_alg == "maximin":
        return _generator(MaximinSearcher(search), limit)
    if importlib.util.find_spec("optuna") is None:
        raise UserError("search_alg: optuna is not installed; pip install 'latentsync_ray[optuna]'")
    # An optional dependency.
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # What is suggested anew must not be what was suggested when the sampler was as young before.
    seed = int(digest([search.sampling_seed, journal.num_suggestions])[:8], 16)
    num_random = max(2, min(_MOST_RANDOM_SUGGESTIONS, search.num_trials // 4))
    sampler = optuna.samplers.TPESampler(n_startup_trials=num_random, seed=seed)
    space = {name: tune_domain(domain) for name, domain in search.param_space.items()}
    suggesting = OptunaSearch(metric=search.metric, mode=search.mode, sampler=sampler)
    suggesting.set_search_properties(search.metric, search.mode, space)
    return _generator(JournaledSearcher(suggesting, journal, search), limit)


def _generator(searcher: Searcher, limit: int) -> SearchGenerator:
    return SearchGenerator(ConcurrencyLimiter(searcher, max_concurrent=limit) if limit else searcher)


def pauses(search: SearchConfig) -> bool:
    """Whether the search's scheduler pauses trials."""
    settings = search.trial_scheduler
    return settings.name in PAUSING_SCHEDULERS or settings.promote


def tune_domain(domain: Domain) -> Any:
    """Ray Tune's search domain for one of ours."""
    match domain:
        case Grid(listed):
            return tune.grid_search(list(listed))
        case Choice(listed):
            return tune.choice(list(listed))
        case Uniform(low, high):
            return tune.uniform(low, high)
        case LogUniform(low, high):
            return tune.loguniform(low, high)
        case RandInt(low, high):
            return tune.randint(low, high)
    raise TypeError(f"no domain: {domain!r}")


class MaximinSearcher(Searcher):  # type: ignore[misc]
    """Suggests one maximin draw after another, the same ones in every run of a search."""

    def __init__(self, search: SearchConfig):
        super().__init__(metric=search.metric, mode=search.mode)
        draws = maximin_draws(search.param_space, search.num_samples, search.sampling_seed)
        self._left = enumerate(draws)

    def set_search_properties(self, metric: str | None, mode: str | None, config: Parameters, **spec: Any) -> bool:
        """The searcher knows its space already."""
        return True

    def suggest(self, trial_id: str) -> Settings | str:
        """The next draw."""
        number, values = next(self._left, (None, None))
        return Searcher.FINISHED if values is None else {**values, TRIAL_NUMBER: number}

    def on_trial_complete(self, trial_id: str, result: TuneResult | None = None, error: bool = False) -> None:
        """Nothing to do: draws do not depend on results."""

    def save(self, checkpoint_path: str) -> None:
        """Ray Tune's own snapshots are not used."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""


class JournaledSearcher(Searcher):  # type: ignore[misc]
    """A searcher whose suggestions are replayed from a journal as far as it goes.

    What trials with replayed suggestions come to is told to the searcher as points evaluated elsewhere, so that it
    goes on with the same knowledge. The trial's number travels in its config, since Ray Tune numbers only the
    trials of its own variant generator.
    """

    def __init__(self, searcher: Searcher, journal: Journal, search: SearchConfig):
        super().__init__(metric=search.metric, mode=search.mode)
        self._searcher, self._journal, self._param_space = searcher, journal, search.param_space
        self._num_suggested = 0
        self._replayed: dict[str, Parameters] = {}
        self._last: dict[str, TuneResult] = {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: Parameters, **spec: Any) -> bool:
        """The searcher inside knows its space already."""
        return True

    def suggest(self, trial_id: str) -> Settings | None:
        """The values of before, or the searcher's."""
        number = self._num_suggested
        values = self._journal.suggestion(number, self._param_space)
        if values is not None:
            self._replayed[trial_id] = values
        else:
            values = self._searcher.suggest(trial_id)
            if values is None:
                return None
            self._journal.write_suggestion(Suggestion(number, values))
        self._num_suggested += 1
        return {**values, TRIAL_NUMBER: number}

    def on_trial_result(self, trial_id: str, result: TuneResult) -> None:
        """Hands a result on."""
        self._last[trial_id] = result
        if trial_id not in self._replayed:
            self._searcher.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: TuneResult | None = None, error: bool = False) -> None:
        """Hands the last result on; Ray Tune gives none for a trial that is stopped while it is paused."""
        result = result or self._last.get(trial_id)
        if trial_id not in self._replayed:
            self._searcher.on_trial_complete(trial_id, result, error)
        elif result and self.metric in result:
            self._searcher.add_evaluated_point(self._replayed[trial_id], result[self.metric])

    def save(self, checkpoint_path: str) -> None:
        """Ray Tune's own snapshots are not used: the journal is what a search goes on from."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""
