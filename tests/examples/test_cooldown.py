"""The example of a language model's cooldown: exact restarts, and what its search finds."""

from __future__ import annotations

import pytest
from direct import answers, best, read, restarted

from latentsync_ray.config.errors import UserError
from latentsync_ray.config.loading import with_overrides


def test_a_restart_changes_no_bit() -> None:
    restarted("cooldown", every=20)


def test_another_length_than_the_decay_s_is_refused() -> None:
    recipe, *_ = read("cooldown")
    with pytest.raises(UserError, match=r"length: must be \{steps: 800\}, as total_steps says, got \{'steps': 600"):
        with_overrides(recipe, {"length.steps": 600})
    assert with_overrides(recipe, {"length.steps": 600, "total_steps": 600}).total_steps == 600


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in (1, 2))])
def test_a_cooldown_that_comes_late_is_better_than_none_and_than_one_from_the_start(seed: int) -> None:
    found = answers("cooldown", seed)
    late, at_once, never = best(found, (400, 600)), best(found, (0,)), best(found, (800,))
    assert late < min(at_once, never) - 0.01, found
