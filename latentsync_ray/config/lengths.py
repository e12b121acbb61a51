"""What a search may make of a number of its recipe, and how long its trials may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from latentsync_ray.config.length import cost, first_stage_steps
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
        numbers += [number for number in [inner_value(recipe, name)] if number is not None]
    return int(min(numbers)), int(max(numbers))


@dataclass(frozen=True)
class Lengths:
    """Most steps that a trial of a search may have."""

    first_stage: int
    """In stage one."""
    second_stage: int
    """In stage two."""
    cost: float
    """Relative cost of the costliest trial."""

    def of(self, time_attr: str) -> float:
        """The greatest value of `second_stage_step`, `global_step` or `cost`."""
        if time_attr == "cost":
            return self.cost
        return self.second_stage + (self.first_stage if time_attr == "global_step" else 0)


def longest_trial(search: SearchConfig, recipe: Recipe) -> Lengths:
    """Most steps of each stage, over all trials that a search may have."""
    first = extremes(search, recipe, "transition.max_step")[1]
    length, whole = recipe.length, first_stage_steps(recipe)
    if length is not None and whole is not None and not has_fixed_second_stage(search):
        earliest, _ = extremes(search, recipe, "transition.min_step")
        every, _ = extremes(search, recipe, "second_stage.report_every_steps")
        return Lengths(min(first, whole), length.second_stage_steps(earliest, every), length.total)
    second = extremes(search, recipe, "second_stage.num_steps")[1]
    return Lengths(first, second, cost(recipe, first + second, second))


def has_fixed_second_stage(search: SearchConfig) -> bool:
    """Whether a search gives its trials lengths of stage two, whatever the recipe's `length` leaves."""
    return any("second_stage.num_steps.".startswith(f"{name}.") for name in search.param_space)
