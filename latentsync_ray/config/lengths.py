"""What a search may make of a number of its recipe, and how long its trials may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from latentsync_ray.config.recipe import Recipe
from latentsync_ray.config.schema import inner_value
from latentsync_ray.config.search import SearchConfig


def extremes(search: SearchConfig, recipe: Recipe, name: str) -> tuple[int, int]:
    """The least and the greatest value of a number in the recipes of a search's trials.

    Args:
        search: Its space may name the number, or a section that holds it.
        recipe: The recipe before a trial's own values.
        name: Dotted name of the number.
    """
    found: list[Any] = []
    for searched, domain in search.param_space.items():
        if searched == name:
            found += domain.extremes() or ()
        elif name.startswith(f"{searched}."):
            found += [inner_value(value, name.removeprefix(f"{searched}.")) for value in domain.samples()]
    numbers = [value for value in found if isinstance(value, int | float)]
    if len(numbers) < len(found) or not numbers:  # a section may leave the number as it is in the recipe
        numbers.append(inner_value(recipe, name))
    return int(min(numbers)), int(max(numbers))


@dataclass(frozen=True)
class Lengths:
    """Most steps that a trial of a search may have."""

    first_stage: int
    """In stage one."""
    second_stage: int
    """In stage two."""

    def of(self, time_attr: str) -> int:
        """The greatest value of `second_stage_step` or `global_step`."""
        return self.second_stage + (self.first_stage if time_attr == "global_step" else 0)


def longest_trial(search: SearchConfig, recipe: Recipe) -> Lengths:
    """Most steps of each stage, over all trials that a search may have."""
    return Lengths(
        extremes(search, recipe, "transition.max_step")[1], extremes(search, recipe, "second_stage.num_steps")[1]
    )
