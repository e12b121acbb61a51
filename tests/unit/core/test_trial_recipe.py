"""A trial's plain recipe gives what the full recipe gives, without the classes of the training."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from latentsync_ray.config.errors import UserError
from latentsync_ray.config.loading import Variants, load_recipe
from latentsync_ray.config.searchfiles import load_search
from latentsync_ray.core.trial_recipe import TrialRecipe

ROOT = Path(__file__).resolve().parents[3]
SPACES = sorted((ROOT / "search_spaces").glob("*.yaml"))


@pytest.mark.parametrize("file", SPACES, ids=lambda file: file.stem)
def test_values_give_the_same_recipe_as_with_its_classes(file: Path) -> None:
    search, recipe = load_search(file, [])
    variants, plain, rng = Variants(recipe), TrialRecipe.of(recipe), random.Random(0)
    for _ in range(10):
        values = {name: domain.sample(rng) for name, domain in search.param_space.items()}
        assert plain.with_values(values) == TrialRecipe.of(variants.recipe(values))


@pytest.mark.parametrize(
    "values",
    [
        {"second_stage.optimizer.lr": 1, "second_stage.optimizer.betas": [0, 0.5]},  # whole numbers for others
        {"second_stage.optimizer": {"lr": 1}, "transition.below": {"value": 1}},  # sections, merged
        {"second_stage": {"num_steps": 80, "batch_size": 2}, "seed": 3, "divergence_factor": None},
        {"first_stage.num_workers": 2, "first_stage.trainable_modules": ["attentions."]},
    ],
)
def test_values_take_the_types_of_their_fields(values: dict[str, object]) -> None:
    recipe = load_recipe(ROOT / "configs" / "demo")
    expected = TrialRecipe.of(Variants(recipe).recipe(values))
    made = TrialRecipe.of(recipe).with_values(values)  # type: ignore[arg-type]
    assert made == expected
    assert made.segment_settings("second_stage") == expected.segment_settings("second_stage")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"transition.at_step": 90}, "transition.at_step: must be a multiple of .* got 90"),
        ({"second_stage.num_steps": 15}, "second_stage.num_steps: must be a positive multiple"),
        ({"transition.att_step": 50}, "transition.att_step"),
    ],
)
def test_a_broken_rule_is_told_in_one_line(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        TrialRecipe.of(load_recipe(ROOT / "configs" / "demo")).with_values(values)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
