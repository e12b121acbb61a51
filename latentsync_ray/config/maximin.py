"""Draws from lists of values, each as far as possible from those before it."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping

from latentsync_ray.config.domains import Domain
from latentsync_ray.config.plain import Settings


def maximin_draws(param_space: Mapping[str, Domain], num_draws: int, seed: int) -> list[Settings]:
    """Different combinations of listed values, spread over all of them.

    The first one is drawn. Each further one is the one whose nearest among those before is the farthest; of equal
    ones one is drawn. Values are as far apart as their places in their list, whose ends are 1 apart. That makes a
    maximin distance design (Johnson, Moore and Ylvisaker 1990, Minimax and maximin distance designs) greedily.

    Args:
        param_space: Lists of values by dotted name.
        num_draws: At most as many as there are combinations.
        seed: Of the draws.
    """
    names, lists = list(param_space), [domain.samples() for domain in param_space.values()]
    places = list(itertools.product(*(range(len(values)) for values in lists)))
    random.Random(seed).shuffle(places)
    scales = [max(1, len(values) - 1) for values in lists]

    def distance(first: tuple[int, ...], second: tuple[int, ...]) -> float:
        return math.hypot(*((a - b) / scale for a, b, scale in zip(first, second, scales, strict=True)))

    drawn: list[tuple[int, ...]] = []
    nearest = dict.fromkeys(places, math.inf)
    while len(drawn) < num_draws:
        farthest = max(nearest, key=lambda place: round(nearest[place], 9))
        del nearest[farthest]
        drawn.append(farthest)
        nearest = {place: min(before, distance(place, farthest)) for place, before in nearest.items()}
    return [{name: values[index] for name, values, index in zip(names, lists, place, strict=True)} for place in drawn]
