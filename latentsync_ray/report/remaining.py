"""How many steps a trial has left to its end."""

from __future__ import annotations

from dataclasses import dataclass

from latentsync_ray.config.errors import UserError
from latentsync_ray.config.length import first_stage_steps, second_stage_steps
from latentsync_ray.config.loading import Variants
from latentsync_ray.config.plain import Parameters
from latentsync_ray.config.recipe import Recipe
from latentsync_ray.report.trials import TrialResult


@dataclass(frozen=True)
class StepsLeft:
    """Steps to the end of a trial, at most."""

    first_stage: int
    """In stage one."""
    second_stage: int
    """In stage two."""

    @property
    def total(self) -> int:
        """In both."""
        return self.first_stage + self.second_stage


class Ends:
    """Where trials end; the recipe is worked out once for each trial's values.

    Args:
        recipe: The recipe before a trial's own values.
    """

    def __init__(self, recipe: Recipe):
        self._variants = Variants(recipe)
        self._known: dict[int, tuple[Parameters, Recipe | None]] = {}

    def steps_left(self, trial: TrialResult) -> StepsLeft:
        """Steps of each stage to the end of a trial, at most: the transition may come sooner."""
        recipe = self._recipe_of(trial)
        if recipe is None:
            return StepsLeft(0, 0)  # it breaks a rule, and fails at its first step
        if trial.transition_step is not None:
            whole = second_stage_steps(recipe, trial.transition_step)
            return StepsLeft(0, max(0, whole - trial.second_stage_step))
        latest, longest = recipe.transition.latest_step, first_stage_steps(recipe)
        leaves_at = latest if longest is None else min(latest, longest)
        return StepsLeft(max(0, leaves_at - trial.global_step), second_stage_steps(recipe, leaves_at))

    def _recipe_of(self, trial: TrialResult) -> Recipe | None:
        known = self._known.get(trial.number)
        if known is None or known[0] != trial.config:
            try:
                recipe = self._variants.recipe(trial.config)
            except UserError:
                recipe = None
            known = self._known[trial.number] = trial.config, recipe
        return known[1]
