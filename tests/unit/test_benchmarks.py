"""Benchmarks take long and are run seldom: here they are only kept in step with what they measure."""

from __future__ import annotations

import asyncio
from importlib import import_module
from pathlib import Path

import pytest

from latentsync_ray.config.domains import Choice
from latentsync_ray.config.searchfiles import load_search

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.parametrize("name", sorted(file.stem for file in BENCHMARKS.glob("*.py")))
def test_it_can_be_imported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    assert import_module(name).__doc__


@pytest.mark.parametrize("method", ["ASHA", "Optuna", "PBT"])
def test_the_grid_s_values_can_be_searched(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.chdir(BENCHMARKS.parent)
    truth = import_module("truth")
    search, recipe = load_search(truth.SPACE, values=truth.values_of(method, 3, 1))
    assert {name: len(domain.values()) for name, domain in search.param_space.items() if name != "seed"} == {
        "transition.at_step": 4,
        "second_stage.optimizer.lr": 7,
    }
    assert recipe.seed == 1 or search.param_space["seed"] == Choice((1,))


def test_trials_walk_through_an_engine_without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    scale = import_module("scale")
    seconds = asyncio.run(scale.engine_directly(3, scale.SETTINGS))
    assert set(seconds) == {"new", "known"}
