"""The example of an adversarial loss that comes later: exact restarts, and what its search finds."""

from __future__ import annotations

import pytest
from direct import answers, best, bits, new, read, restarted, trained

from latentsync_ray.config.recipe import SECOND_STAGE


def test_a_restart_changes_no_bit() -> None:
    restarted("gan_later", every=20)


def test_no_weight_changes_from_the_end_on() -> None:
    recipe, *_ = read("gan_later")
    training = new(recipe)
    training.build(SECOND_STAGE, recipe.second_stage, None, SECOND_STAGE)
    last = trained(training, recipe.total_steps - 1, recipe.total_steps, 0)
    assert bits(trained(training, recipe.total_steps, recipe.total_steps + 3, 0)) == bits(last)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_loss_that_comes_later_is_better_than_none_and_than_one_from_the_start(seed: int) -> None:
    found = answers("gan_later", seed)
    later, at_once, never = best(found, (120, 240)), best(found, (0,)), best(found, (360,))
    assert later < min(at_once, never), found
