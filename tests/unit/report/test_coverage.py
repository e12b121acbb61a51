"""Intervals hold the truth as often as they say, in experiments whose truth is known (a small `make coverage`)."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def coverage(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    return import_module("coverage")


@pytest.mark.parametrize("num_speakers", [3, 6])
def test_intervals_of_the_best_hold_the_truth(num_speakers: int, coverage: Any) -> None:
    outcomes = {truth: coverage.measure(num_speakers, truth, 40) for truth in coverage.TRUTHS}
    whole = sum(outcomes.values(), start=coverage.Outcome())
    assert whole.count == 320
    assert 0.93 <= whole.ours.held / whole.count <= 0.98
    assert whole.num_best_kept / whole.count >= 0.95
    # Where all are equal the choice of the luckiest matters most; and few speakers are no sample to draw from.
    equal = outcomes["all trials are equal"]
    assert equal.ours.held >= 36 > equal.percentile.held + 8
    assert whole.uncorrected.held < whole.ours.held and whole.percentile.held / whole.count < 0.85


@pytest.mark.parametrize("confirms", [False, True])
def test_they_do_over_several_seeds_too(confirms: bool, coverage: Any) -> None:
    outcome = coverage.measure_seeds(6, confirms, 60)
    assert 0.93 <= outcome.ours.held / outcome.count <= 1
    assert outcome.num_best_kept >= 57
