"""Maximin draws: each combination once, and none of a half of them far from what is drawn."""

from __future__ import annotations

import itertools

import pytest

from latentsync_ray.config.domains import Choice
from latentsync_ray.config.maximin import maximin_draws

RATES = (1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3, 6.4e-3)
SPACE = {"at_step": Choice((40, 80, 120, 160)), "lr": Choice(RATES), "seed": Choice((0,))}


@pytest.mark.parametrize("seed", range(5))
def test_every_combination_is_drawn_once(seed: int) -> None:
    drawn = [(draw["at_step"], draw["lr"]) for draw in maximin_draws(SPACE, 28, seed)]
    assert sorted(drawn) == sorted(itertools.product(SPACE["at_step"].listed, RATES))


@pytest.mark.parametrize("seed", range(20))
def test_a_half_of_them_leaves_no_neighbourhood_out(seed: int) -> None:
    """Of any three neighbours in a row of rates one is drawn, which 14 random draws miss in one case of ten."""
    drawn = {(draw["at_step"], draw["lr"]) for draw in maximin_draws(SPACE, 14, seed)}
    for at_step in SPACE["at_step"].listed:
        assert all(any((at_step, rate) in drawn for rate in RATES[first : first + 3]) for first in range(5))


def test_a_seed_has_draws_of_its_own_of_which_fewer_are_the_first() -> None:
    draws = maximin_draws(SPACE, 14, 0)
    assert maximin_draws(SPACE, 5, 0) == draws[:5]
    assert len({tuple(maximin_draws(SPACE, 1, seed)[0].values()) for seed in range(20)}) > 5
    assert maximin_draws(SPACE, 14, 1) != draws
