"""A trial's whole length: what stage two gets, and where trials end, in the recipe and on a trial's course."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentsync_ray.config.errors import UserError
from latentsync_ray.config.length import LengthConfig
from latentsync_ray.config.lengths import longest_trial
from latentsync_ray.config.loading import load_recipe, with_overrides
from latentsync_ray.config.recipe import FIRST_STAGE, SECOND_STAGE
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.config.searchfiles import load_search
from latentsync_ray.core.course import Course
from latentsync_ray.core.trial_recipe import TrialRecipe
from latentsync_ray.report.remaining import Ends, StepsLeft
from latentsync_ray.report.trials import TrialResult

ROOT = Path(__file__).resolve().parents[3]
EVERY = {"first_stage.report_every_steps": 20, "second_stage.report_every_steps": 10, "transition.min_step": 0}
FIXED = {**EVERY, "transition.plateau": None, "transition.max_step": 1000, "second_stage.num_steps": None}


def walk(overrides: dict[str, object]) -> tuple[int, int, float, bool]:
    """Steps of each stage, the cost at the end, and whether the trial knew that it was there."""
    recipe = TrialRecipe.of(load_recipe(ROOT / "configs" / "demo", {**FIXED, **overrides}))
    course, steps = Course(recipe, "root"), {FIRST_STAGE: 0, SECOND_STAGE: 0}
    ends = []
    while (segment := course.next()) is not None:
        steps[segment.stage] += segment.num_steps
        course.passed(segment, {})
        ends.append(course.at_end)
    assert ends == [False] * (len(ends) - 1) + [True]
    return steps[FIRST_STAGE], steps[SECOND_STAGE], course.cost, course.at_end


@pytest.mark.parametrize(
    ("length", "at_step", "expected"),
    [
        ({"steps": 200}, 80, (80, 120, 200.0)),
        ({"steps": 205}, 80, (80, 120, 200.0)),  # rounded down to a report boundary
        ({"steps": 200}, 0, (0, 200, 200.0)),
        ({"steps": 200}, 200, (200, 0, 200.0)),  # nothing is left for stage two
        ({"steps": 200}, 1000, (200, 0, 200.0)),  # it never leaves
        ({"cost": 200, "second_stage": 2.0}, 80, (80, 60, 200.0)),
        ({"cost": 200.0, "first_stage": 0.5, "second_stage": 2.1}, 80, (80, 70, 187.0)),
        ({"cost": 0.3, "first_stage": 0.001, "second_stage": 0.001}, 100, (100, 200, 0.3)),  # 0.1 is no binary number
    ],
)
def test_stage_two_gets_what_stage_one_leaves(length: object, at_step: int, expected: tuple[int, int, float]) -> None:
    first, second, cost, at_end = walk({"length": length, "transition.at_step": at_step})
    assert (first, second) == expected[:2] and cost == pytest.approx(expected[2]) and at_end


def test_a_policy_s_trial_is_as_long_as_the_others() -> None:
    recipe = TrialRecipe.of(
        load_recipe(
            ROOT / "configs" / "demo",
            {**EVERY, "length.steps": 200, "second_stage.num_steps": None, "transition.max_step": 1000}
            | {"transition.plateau": None, "transition.below": {"metric": "val/recon", "value": 0.5}},
        )
    )
    for leaves_at in (20, 100, 180, 200, 220):
        course = Course(recipe, "root")
        while (segment := course.next()) is not None:
            course.passed(segment, {"val/recon": 0.4 if segment.end_step >= leaves_at else 0.6})
        assert course.last is not None and course.last.end_step == 200
        assert course.last.second_stage_step == max(0, 200 - leaves_at)


def test_a_fixed_stage_two_comes_before_the_length() -> None:
    assert walk({"length": {"steps": 200}, "transition.at_step": 80, "second_stage.num_steps": 40})[:2] == (80, 40)


def test_a_recipe_without_any_length_is_refused() -> None:
    with pytest.raises(UserError, match=r"length: must be given where second_stage.num_steps is null"):
        walk({"length": None, "transition.at_step": 80})
    with pytest.raises(UserError, match=r"steps: must be given where `cost` is not"):
        walk({"length": {"steps": 3, "cost": 2.0}})
    with pytest.raises(UserError, match=r"second_stage: must be 1 where `steps`"):
        walk({"length": {"steps": 200, "second_stage": 2.0}})
    with pytest.raises(UserError, match=r"length: must hold first_stage.report_every_steps"):
        walk({"length": {"steps": 10}, "transition.at_step": 0})


@given(st.integers(1, 5000), st.integers(1, 60), st.integers(1, 60), st.integers(0, 5000), st.integers(1, 40))
def test_stage_two_fits_and_no_more_would(whole: int, tenths: int, more_tenths: int, step: int, every: int) -> None:
    length = LengthConfig(cost=whole, first_stage=tenths / 10, second_stage=more_tenths / 10)
    steps = length.second_stage_steps(step, every)
    first, second = Fraction(tenths, 10), Fraction(more_tenths, 10)
    assert steps % every == 0
    assert steps == 0 or step * first + steps * second <= whole
    assert step * first + (steps + every) * second > whole


def test_the_longest_trial_and_what_is_left() -> None:
    length = {"length": {"steps": None, "cost": 200, "second_stage": 2.0}, "transition.at_step": 80}
    recipe = load_recipe(ROOT / "configs" / "demo", {**FIXED, **length})
    longest = longest_trial(SearchConfig("r", "s"), recipe)
    assert (longest.first_stage, longest.second_stage, longest.of("cost")) == (200, 100, 200.0)
    ends = Ends(recipe)
    assert ends.steps_left(TrialResult(0, {})) == StepsLeft(80, 60)
    assert ends.steps_left(TrialResult(1, {"transition.at_step": 400})) == StepsLeft(200, 0)


def test_stage_two_may_draw_by_a_seed_of_its_own() -> None:
    recipe = TrialRecipe.of(
        load_recipe(ROOT / "configs" / "demo", {**FIXED, "length.steps": 200, "transition.at_step": 20})
    )
    courses = [Course(recipe.with_values(values), "root") for values in ({}, {"second_stage.seed": 5})]
    for course in courses:
        while (segment := course.next()) is not None and segment.stage == FIRST_STAGE:
            course.passed(segment, {})
        assert segment is not None
        course.passed(segment, {})
    (plain, seeded) = (course.last for course in courses)
    assert plain is not None and seeded is not None
    assert plain.parent == seeded.parent and plain.key != seeded.key and (plain.seed, seeded.seed) == (0, 5)


def test_steps_and_cost_replace_each_other() -> None:
    """The demo has steps."""
    demo = load_recipe(ROOT / "configs" / "demo")
    cost = LengthConfig(cost=300.0, second_stage=2.0)
    assert with_overrides(demo, {"length": {"cost": 300, "second_stage": 2.0}}).length == cost
    by_cost = with_overrides(demo, {"length.cost": 300.0, "length.second_stage": 2.0})
    assert by_cost.length == cost
    assert with_overrides(by_cost, {"length.second_stage": 1.0}).length == LengthConfig(cost=300.0)
    assert with_overrides(by_cost, {"length": {"steps": 100, "second_stage": 1.0}}).length == LengthConfig(steps=100)
    assert with_overrides(demo, {"length": None, "second_stage.num_steps": 40}).length is None
    for both in ({"length": {"steps": 100, "cost": 300.0}}, {"length.cost": 300.0, "length.steps": 100}):
        with pytest.raises(UserError, match=r"override: length\.steps: must be given where `cost` is not, and only"):
            with_overrides(demo, both)
    with pytest.raises(
        UserError, match=r"length\.second_stage: must be 1 where `steps` counts every step alike, got"
    ):
        with_overrides(by_cost, {"length.steps": 100})
    given = load_search(ROOT / "search_spaces" / "transition.yaml", ["length={cost: 300, second_stage: 2}"])
    assert given[1].length == cost
