"""The example of a language model's cooldown: exact restarts, and what its search finds."""

from __future__ import annotations

import pytest
from direct import answers, best, bits, new, read, restarted, trained

from latentsync_ray.config.errors import UserError
from latentsync_ray.config.loading import with_overrides
from latentsync_ray.config.recipe import SECOND_STAGE


def test_a_restart_changes_no_bit() -> None:
    restarted("cooldown", every=20)


def test_no_weight_changes_from_the_end_on() -> None:
    recipe, *_ = read("cooldown")
    training = new(recipe)
    training.build(SECOND_STAGE, recipe.second_stage, None, SECOND_STAGE)
    last = trained(training, recipe.total_steps - 1, recipe.total_steps, 0)
    assert bits(trained(training, recipe.total_steps, recipe.total_steps + 3, 0)) == bits(last)


def test_too_short_a_second_stage_is_refused() -> None:
    recipe, *_ = read("cooldown")
    with pytest.raises(UserError, match=r"second_stage.num_steps: must reach total_steps \(800\), got 600"):
        with_overrides(recipe, {"second_stage.num_steps": 600})


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in (1, 2))])
def test_a_cooldown_that_comes_late_is_better_than_none_and_than_one_from_the_start(seed: int) -> None:
    found = answers("cooldown", seed)
    late, at_once, never = best(found, (400, 600)), best(found, (0,)), best(found, (800,))
    assert late < min(at_once, never) - 0.01, found
