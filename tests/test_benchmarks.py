"""Benchmarks take long and are run seldom: here they are only kept in step with what they measure."""

from __future__ import annotations

import asyncio
from importlib import import_module
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.mark.parametrize("name", sorted(file.stem for file in BENCHMARKS.glob("*.py")))
def test_it_can_be_imported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "truth":
        pytest.importorskip("matplotlib", reason="matplotlib comes with `make face`, which is not here")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    assert import_module(name).__doc__


def test_trials_walk_through_an_engine_without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    scale = import_module("scale")
    seconds = asyncio.run(scale.engine_directly(3, scale.SETTINGS))
    assert set(seconds) == {"new", "known"}
