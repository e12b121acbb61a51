"""Comparison of candidates on the same pairs: exact where a formula is known."""

from __future__ import annotations

import math
import statistics
from time import process_time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentsync_ray.report.comparison import relative_difference, tied_with_best
from latentsync_ray.report.samples import Floats, Samples
from latentsync_ray.report.seeds import SeedSpread

T_5 = 2.571
"""Student's t, 97.5 %, 5 degrees of freedom."""


def drawn(num_candidates: int, num_groups: int, each: int = 4, seed: int = 0, spread: float = 0.02) -> Floats:
    """Values of shape (num_candidates, num_groups * each) that differ by noise alone."""
    random = np.random.default_rng(seed)
    difficulty = np.exp(random.normal(0, 0.3, num_groups)).repeat(each)
    return np.asarray(difficulty * (1 + spread * random.normal(size=(num_candidates, num_groups * each))))


def groups(num_groups: int, each: int = 4) -> list[int]:
    return [group for group in range(num_groups) for _ in range(each)]


def alone(values: Floats, num_groups: int) -> tuple[Samples, Samples]:
    """One candidate and its baseline."""
    clusters = groups(num_groups)
    return Samples.of(values[:1], clusters), Samples.of(values[1:], clusters)


def test_one_candidate_has_student_s_interval_of_the_ratio_over_groups() -> None:
    values = drawn(2, 6)
    candidate, baseline = alone(values, 6)
    interval = relative_difference(candidate, 0, np.array([True]), baseline)
    ours, theirs = values.reshape(2, 6, 4).mean(axis=2)
    ratio = statistics.fmean(ours) / statistics.fmean(theirs)
    errors = [(one - ratio * other) / statistics.fmean(theirs) for one, other in zip(ours, theirs, strict=True)]
    half = T_5 * statistics.stdev(errors) / math.sqrt(6)
    assert interval.estimate == pytest.approx(ratio - 1)
    assert interval.low == pytest.approx(ratio - 1 - half, abs=0.02 * half)
    assert interval.high == pytest.approx(ratio - 1 + half, abs=0.1 * half)


def test_the_best_of_many_has_a_longer_upper_end_and_the_same_lower_one() -> None:
    values = drawn(17, 6)
    samples, baseline = Samples.of(values[:-1], groups(6)), Samples.of(values[-1:], groups(6))
    best = int(samples.means.argmin())
    tied = tied_with_best(samples, best)
    chosen = relative_difference(samples, best, tied, baseline)
    beforehand = relative_difference(samples, best, np.arange(16) == best, baseline)
    assert tied.sum() > 10
    assert chosen.low == beforehand.low and chosen.high > beforehand.high + 0.1 * (beforehand.high - beforehand.low)


def test_pairs_of_a_group_are_not_counted_as_independent() -> None:
    values = np.array([[1.0, 2.0, 3.0], [1.1, 2.0, 3.2]]).repeat(50, axis=1)
    few = Samples.of(values, [0] * 50 + [1] * 50 + [2] * 50)
    once = Samples.of(values[:, ::50], [0, 1, 2])
    np.testing.assert_allclose(few.parts, once.parts)
    np.testing.assert_allclose((once.parts**2).sum(axis=1), np.var(values[:, ::50], axis=1, ddof=1) / 3)


@given(st.integers(2, 8), st.integers(3, 7), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_scale_changes_no_answer_and_the_best_is_always_tied(count: int, num_groups: int, seed: int) -> None:
    values = drawn(count + 1, num_groups, seed=seed)
    found = []
    for scale in (1.0, 250.0):
        samples = Samples.of(scale * values[:-1], groups(num_groups))
        best = int(samples.means.argmin())
        tied = tied_with_best(samples, best)
        assert tied[best]
        baseline = Samples.of(scale * values[-1:], groups(num_groups))
        found.append((tied.tolist(), relative_difference(samples, best, tied, baseline)))
    assert found[0][0] == found[1][0]
    for name in ("estimate", "low", "high"):
        assert getattr(found[0][1], name) == pytest.approx(getattr(found[1][1], name), rel=1e-6)


def test_what_is_clearly_worse_is_left_out_and_what_is_the_same_is_not() -> None:
    values = drawn(6, 6)
    values[3] = values[0]
    values[1:3] *= 1.5
    values[4:] *= 1.4
    samples = Samples.of(values, groups(6))
    for best in (0, 3):
        assert tied_with_best(samples, best).tolist() == [True, False, False, True, False, False]
    # Worse by the same on each pair: there is no chance in it.
    shifted = Samples.of(np.stack([values[0], values[0] + 0.01]), groups(6))
    assert tied_with_best(shifted, 0).tolist() == [True, False]


def test_a_candidate_does_not_differ_from_itself() -> None:
    samples = Samples.of(drawn(5, 6), groups(6))
    best = int(samples.means.argmin())
    itself = Samples.of(drawn(5, 6)[best : best + 1], groups(6))
    interval = relative_difference(samples, best, np.arange(5) == best, itself)
    assert (interval.low, interval.estimate, interval.high) == pytest.approx((0, 0, 0), abs=1e-12)


def test_seeds_are_pooled_one_way_and_two_ways() -> None:
    same = SeedSpread.of([{0: 1.0, 1: 3.0}, {0: 2.0, 1: 4.0}])  # the second seed adds 2 to both
    assert (same.alone.variance, same.alone.degrees) == (2.0, 2)
    assert (same.between.variance, same.between.degrees) == (0.0, 1)
    other = SeedSpread.of([{0: 1.0, 1: 3.0}, {2: 2.0}])
    assert other.between == other.alone and (other.alone.variance, other.alone.degrees) == (2.0, 1)
    assert SeedSpread.of([{0: 1.0}, {0: 2.0}]).alone.degrees == 0


def test_seeds_that_differ_widen_an_interval() -> None:
    values = drawn(2, 6)
    candidate, baseline = alone(values, 6)
    narrow = relative_difference(candidate, 0, np.array([True]), baseline)
    seeded = Samples(candidate.means, candidate.parts, np.array([0.03]), 6)
    wide = relative_difference(seeded, 0, np.array([True]), baseline)
    assert wide.estimate == narrow.estimate and wide.low < narrow.low - 0.02 and wide.high > narrow.high + 0.02


@pytest.mark.parametrize("num_groups", [6, 100])
def test_thousands_of_trials_take_less_than_a_second(num_groups: int) -> None:
    values = drawn(2000, 100, each=1)
    clusters = np.arange(100) * num_groups // 100
    start = process_time()
    samples = Samples.of(values, clusters.tolist())
    tied = tied_with_best(samples, int(samples.means.argmin()))
    relative_difference(samples, int(samples.means.argmin()), tied, Samples.of(values[:1], clusters.tolist()))
    assert process_time() - start < 2  # about half a second on one core; BLAS threads that wait count too
