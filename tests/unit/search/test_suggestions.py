"""Suggestions are made again, Optuna's from the journal; Optuna learns from results."""

from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from latentsync_ray.config.domains import Choice, LogUniform
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.search.journal import Journal
from latentsync_ray.search.suggestions import make_search_algorithm
from latentsync_ray.search.trial import TRIAL_NUMBER
from latentsync_ray.store import Store

NAME = "second_stage.optimizer.lr"
SEARCH = SearchConfig(
    recipe="", name="s", param_space={NAME: LogUniform(1e-5, 1e-1)}, num_samples=16, search_alg="optuna"
)


def suggest(store: Store, number: int) -> list[float]:
    """So many suggestions in a row, each told to be as bad as it is far from 1e-3."""
    searcher = make_search_algorithm(SEARCH, Journal(store, "decisions")).searcher.searcher
    values = []
    for trial in range(number):
        suggestion: dict[str, Any] = searcher.suggest(str(trial))
        values.append(suggestion[NAME])
        loss = max(values[-1] / 1e-3, 1e-3 / values[-1])
        searcher.on_trial_complete(str(trial), {SEARCH.metric: loss})
    return values


def test_what_was_suggested_is_suggested_again_and_what_follows_is_new(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    before = suggest(Store(str(tmp_path)), 6)
    after = suggest(Store(str(tmp_path)), 12)
    assert after[:6] == before
    assert len(set(after)) == 12


def test_maximin_suggests_the_same_again_and_then_no_more(tmp_path: Path) -> None:
    space = {NAME: Choice((1e-4, 1e-3, 1e-2)), "transition.at_step": Choice((40, 80))}
    search = SearchConfig(recipe="", name="s", param_space=space, num_samples=6, search_alg="maximin")

    def suggested() -> list[Any]:
        made = make_search_algorithm(search, Journal(Store(str(tmp_path)), "decisions"))
        return [made.searcher.searcher.suggest(str(trial)) for trial in range(7)]

    first = suggested()
    assert first == suggested() and first[6] == Searcher.FINISHED
    assert [values[TRIAL_NUMBER] for values in first[:6]] == list(range(6))
    assert len({(values[NAME], values["transition.at_step"]) for values in first[:6]}) == 6


def test_it_learns_within_a_small_search(tmp_path: Path) -> None:
    pytest.importorskip("optuna")

    def off(values: list[float]) -> float:
        return sum(max(value / 1e-3, 1e-3 / value) for value in values) / len(values)

    values = suggest(Store(str(tmp_path)), 16)
    assert off(values[8:]) < off(values[:4]) / 2
