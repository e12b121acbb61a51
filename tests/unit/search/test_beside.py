"""Baselines and confirmations: what they train, and that they run to their ends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from latentsync_ray.config.domains import Grid
from latentsync_ray.config.loading import load_recipe
from latentsync_ray.config.recipe import FIRST_STAGE, SECOND_STAGE, Recipe
from latentsync_ray.config.search import ConfirmConfig, SearchConfig
from latentsync_ray.core.baselines import Asked, Role, baselines
from latentsync_ray.core.course import Course
from latentsync_ray.core.segment import Segment
from latentsync_ray.core.trial_recipe import TrialRecipe
from latentsync_ray.report.trials import Boundary, TrialResult, TrialStatus
from latentsync_ray.search.beside import confirmations, is_among, num_beside

ROOT = Path(__file__).resolve().parents[3]
AT, LR = "transition.at_step", "second_stage.optimizer.lr"
STEPS = {
    "first_stage.report_every_steps": 20,
    "second_stage.report_every_steps": 10,
    "second_stage.num_steps": None,
    "length": {"steps": 200},
    "transition.min_step": 0,
    "transition.max_step": 200,
}
SPACE = {AT: Grid((40, 80)), LR: Grid((1e-4, 2e-4))}


@pytest.fixture(scope="module")
def shipped() -> Recipe:
    return load_recipe(ROOT / "configs" / "demo", STEPS)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe(ROOT / "configs" / "demo", {**STEPS, "transition.plateau": None})


def walk(recipe: Recipe, asked: Asked, falling: bool = True) -> tuple[int, int]:
    """Steps of each stage, under metrics that fall for ever, or never."""
    course, steps = (
        Course(TrialRecipe.of(recipe).with_values(asked.values), "root"),
        {FIRST_STAGE: 0, SECOND_STAGE: 0},
    )
    while (segment := course.next()) is not None:
        steps[segment.stage] += segment.num_steps
        course.passed(segment, {"val/recon": 0.9**segment.end_step if falling else 1.0})
    return steps[FIRST_STAGE], steps[SECOND_STAGE]


def test_baselines_cost_what_trials_cost(recipe: Recipe, shipped: Recipe) -> None:
    never, first, own = baselines(SearchConfig("r", "s", param_space=SPACE), recipe, shipped)
    assert [asked.role for asked in (never, first, own)] == [Role.NEVER, Role.FIRST, Role.SHIPPED]
    assert walk(recipe, never) == walk(recipe, never, falling=False) == (200, 0)
    assert walk(recipe, first) == (40, 160)
    assert walk(recipe, own) == (200, 0) and walk(recipe, own, falling=False)[1] > 0  # the recipe's plateau
    assert sum(walk(recipe, own, falling=False)) == 200


def test_without_a_length_never_leaving_takes_the_longest_trial_s_steps(recipe: Recipe, shipped: Recipe) -> None:
    fixed = replace(recipe, length=None, second_stage=replace(recipe.second_stage, num_steps=30))
    never = baselines(SearchConfig("r", "s", param_space={LR: SPACE[LR]}), fixed, shipped)[0]
    assert walk(fixed, never) == (220, 0)  # 200 + 30, of which whole segments


def test_each_seed_has_its_baselines(recipe: Recipe, shipped: Recipe) -> None:
    search = SearchConfig("r", "s", param_space={**SPACE, "seed": Grid((0, 1))})
    made = baselines(search, recipe, shipped)
    assert [(asked.role, asked.values["seed"]) for asked in made] == [
        (role, seed) for role in (Role.NEVER, Role.FIRST, Role.SHIPPED) for seed in (0, 1)
    ]
    for refused in ({"share": False}, {"baselines": False}, {"start_from": "abc"}):
        assert baselines(replace(search, **refused), recipe, shipped) == []


def trial(number: int, loss: float, status: TrialStatus = TrialStatus.FINISHED) -> TrialResult:
    boundary = Boundary.after(Segment("root", SECOND_STAGE, {}, 0, 0, 8), {"val/objective": loss})
    return TrialResult(number, {AT: 40 * number}, (boundary,), status)


@pytest.mark.parametrize("whole", [False, True])
def test_the_best_are_confirmed_and_what_they_are_compared_with(whole: bool, recipe: Recipe) -> None:
    search = SearchConfig("r", "s", param_space=SPACE, confirm=ConfirmConfig(top=2, seeds=2, whole=whole))
    trials = [trial(0, 3.0), trial(1, 1.0), trial(2, 2.0), trial(3, 0.5, TrialStatus.STOPPED)]
    compared = [Asked(Role.NEVER, {"a": 1}), Asked(Role.FIRST, {AT: 40})]
    made = confirmations(search, recipe, trials, compared)
    name = "seed" if whole else "second_stage.seed"
    assert [asked.values for asked in made if asked.role == Role.CONFIRMING] == [
        {AT: 40 * number, name: seed} for number in (1, 2) for seed in (1, 2)
    ]
    assert [asked.role for asked in made if asked.role != Role.CONFIRMING] == (
        [Role.NEVER] * 2 * whole + [Role.FIRST] * 2  # what stage one trains does not depend on stage two's draws
    )
    assert len(compared) + len(made) <= num_beside(search, compared)
    assert all(is_among(asked, [*trials, TrialResult(9, asked.values, role=asked.role)]) for asked in made)
    assert confirmations(replace(search, confirm=ConfirmConfig()), recipe, trials, compared) == []
