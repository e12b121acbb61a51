"""When stage one ends: each condition at the boundary where it turns true, and what no history can change."""

import copy
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentsync_ray.config.transition import BelowConfig, PlateauConfig, TransitionConfig
from latentsync_ray.core.transition import Observation, divergence, objective, should_transition

EVERY = 20


def history_of(values: list[float], metric: str = "val/recon") -> list[Observation]:
    """Boundaries at 20, 40, ... with these values of one metric."""
    return [Observation(step, {metric: value}) for step, value in zip(count(EVERY, EVERY), values, strict=False)]


def transition_step(policy: TransitionConfig, history: list[Observation]) -> int | None:
    """The first boundary at which the policy says yes, as a trial asks it."""
    for end in range(1, len(history) + 1):
        if should_transition(policy, history[:end]):
            return history[end - 1].global_step
    return None


def plateau(values: list[float], **settings: float) -> int | None:
    policy = TransitionConfig(max_step=10_000, plateau=PlateauConfig(**{"patience_steps": 40, **settings}))
    return transition_step(policy, history_of(values))


def test_nothing_trained_yet_is_never_the_end() -> None:
    assert not should_transition(TransitionConfig(max_step=20, at_step=20), [])
    # A threshold of 0 leaves stage one out; what looks at metrics cannot say so.
    below = BelowConfig(value=9.0)
    assert should_transition(TransitionConfig(max_step=20, at_step=0), [])
    assert should_transition(TransitionConfig(max_step=20, at_step=0, combine="all"), [])
    assert should_transition(TransitionConfig(max_step=20, at_step=0, below=below), [])
    assert not should_transition(TransitionConfig(max_step=20, at_step=0, below=below, combine="all"), [])
    assert not should_transition(TransitionConfig(max_step=20, below=below), [])


def test_a_plateau_lasts_patience_steps_after_the_best_boundary() -> None:
    assert plateau([1.0, 1.0, 1.0, 1.0]) == 60
    assert plateau([3.0, 2.0, 1.0, 1.0, 1.5, 0.5]) == 100
    assert plateau([1.0, 1.0, 0.9, 0.9, 0.8, 0.8]) is None
    assert plateau([1.0, 1.0, 1.0, 1.0], patience_steps=20) == 40


def test_progress_is_relative_and_has_to_exceed_min_delta() -> None:
    by_a_quarter = [1.0, 0.75, 0.75, 0.75]
    assert plateau(by_a_quarter, min_delta=0.25) == 60
    assert plateau(by_a_quarter, min_delta=0.249) == 80
    # Small steps add up: they are measured from where the last progress was made.
    assert plateau([1.0, 0.875, 0.75, 0.625, 0.5], min_delta=0.25) == 60
    assert plateau([1.0, 0.875, 0.625, 0.5, 0.4375], min_delta=0.25) is None


def test_an_average_smooths_a_dip_away() -> None:
    dip = [1.0, 1.0, 0.5, 1.0, 1.0, 1.0]
    assert plateau(dip) == 60 + 40
    # Weight 0.75 on the past: 1, 1, 0.875, 0.90625, ...: the dip counts, but only as an eighth.
    assert plateau(dip, smoothing=0.75, min_delta=0.125) == 60
    assert plateau(dip, smoothing=0.75, min_delta=0.1249) == 100
    # An average goes on falling for a while after the values have stopped.
    step_down = [1.0, 0.0, 0.0, 0.0, 0.0]
    assert plateau(step_down) == 80
    assert plateau(step_down, smoothing=0.5) is None


def test_below_means_below() -> None:
    policy = TransitionConfig(max_step=1000, below=BelowConfig("val/lpips", 0.5))
    assert transition_step(policy, history_of([0.7, 0.5, 0.4, 0.9], "val/lpips")) == 60


@pytest.mark.parametrize(("combine", "expected"), [("any", 40), ("all", 80)])
def test_conditions_are_combined(combine: str, expected: int) -> None:
    policy = TransitionConfig(max_step=1000, at_step=40, below=BelowConfig(value=0.5), combine=combine)
    assert transition_step(policy, history_of([0.9, 0.8, 0.7, 0.4, 0.9])) == expected


@pytest.mark.parametrize("combine", ["any", "all"])
def test_without_conditions_max_step_decides(combine: str) -> None:
    policy = TransitionConfig(max_step=80, combine=combine)
    assert transition_step(policy, history_of([1.0] * 9)) == 80


def test_a_metric_that_was_not_validated_is_an_error() -> None:
    policy = TransitionConfig(max_step=1000, below=BelowConfig("val/sync", 0.5))
    with pytest.raises(KeyError, match="val/sync"):
        should_transition(policy, history_of([1.0]))


boundaries = st.integers(1, 15).map(lambda n: n * EVERY)
metrics = st.floats(-1e3, 1e3, allow_nan=False)


@st.composite
def policies(draw: st.DrawFn) -> TransitionConfig:
    low, at, high = sorted(draw(st.tuples(boundaries, boundaries, boundaries)))
    return TransitionConfig(
        max_step=high,
        min_step=draw(st.sampled_from([0, low])),
        at_step=draw(st.sampled_from([None, at])),
        plateau=draw(
            st.none()
            | st.builds(
                PlateauConfig,
                patience_steps=boundaries,
                min_delta=st.floats(0, 0.5),
                smoothing=st.floats(0, 0.9),
            )
        ),
        below=draw(st.none() | st.builds(BelowConfig, value=metrics)),
        combine=draw(st.sampled_from(["any", "all"])),
    )


histories = st.lists(metrics, min_size=1, max_size=20).map(history_of)


@settings(deadline=None)
@given(policies(), histories)
def test_bounds_hold_whatever_the_metrics(policy: TransitionConfig, history: list[Observation]) -> None:
    step = history[-1].global_step
    answer = should_transition(policy, history)
    if step >= policy.max_step:
        assert answer
    elif step < policy.min_step:
        assert not answer


@settings(deadline=None)
@given(policies(), histories, histories)
def test_an_answer_depends_on_the_history_so_far_alone(
    policy: TransitionConfig, history: list[Observation], rest: list[Observation]
) -> None:
    later = [Observation(history[-1].global_step + step, values) for step, values in rest]
    before, untouched = transition_step(policy, history), copy.deepcopy(history)
    after = transition_step(policy, [*history, *later])
    assert history == untouched
    assert before == transition_step(policy, history)
    assert after == before if before is not None else after is None or after > history[-1].global_step


@settings(deadline=None)
@given(st.tuples(boundaries, boundaries, boundaries).map(sorted), st.lists(metrics, min_size=20, max_size=20))
def test_at_step_fires_exactly_there(steps: list[int], values: list[float]) -> None:
    low, at, high = steps
    policy = TransitionConfig(max_step=high, min_step=low, at_step=at)
    assert transition_step(policy, history_of(values)) == at


@settings(deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=20), st.integers(-8, 8), st.floats(0, 0.5))
def test_a_plateau_knows_no_unit(values: list[float], exponent: int, min_delta: float) -> None:
    scaled = [value * 2.0**exponent for value in values]
    assert plateau(scaled, min_delta=min_delta) == plateau(values, min_delta=min_delta)


def test_the_objective_is_a_weighted_sum_of_terms_with_a_weight() -> None:
    assert objective({"val/recon": 2.0, "val/trepa": 0.5}, {"val/recon": 3.0, "val/trepa": 4.0}) == 8.0


def test_divergence_is_told_from_the_best_with_its_step_and_term() -> None:
    weights = {"val/recon": 1.0, "val/lpips": 0.1}
    values = [(4.0, 1.0), (1.0, 1.0), (1.5, 2.0), (1.2, 98.0)]
    history = [
        Observation(step, {"val/recon": recon, "val/lpips": lpips})
        for step, (recon, lpips) in zip(count(EVERY, EVERY), values, strict=False)
    ]
    assert [divergence(10, weights, history[:end]) for end in (1, 2, 3)] == [None] * 3  # a start may be bad
    assert divergence(10, weights, history) == (
        "at step 80 val/objective is 11, at step 40 it was 1.1; most of it is val/lpips, 98 where it was 1"
    )
    assert divergence(10.1, weights, history) is None


@pytest.mark.parametrize(
    ("policy", "earliest"),
    [
        ({"at_step": 60}, 60),
        ({}, 200),
        ({"plateau": PlateauConfig()}, 40),
        ({"at_step": 60, "below": BelowConfig()}, 40),
        ({"at_step": 60, "below": BelowConfig(), "combine": "all"}, 60),
        ({"at_step": 0, "min_step": 0}, 0),
    ],
)
def test_before_the_earliest_step_no_metrics_end_stage_one(policy: dict[str, Any], earliest: int) -> None:
    config = TransitionConfig(**{"max_step": 200, "min_step": 40, **policy})
    assert config.earliest_step == earliest
    best_case = [Observation(step, {"val/recon": -1.0}) for step in range(EVERY, earliest, EVERY)]
    assert not any(should_transition(config, best_case[:end]) for end in range(1, len(best_case) + 1))
