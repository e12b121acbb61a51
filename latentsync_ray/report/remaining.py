"""How many steps a trial has left to its end."""

from __future__ import annotations

from latentsync_ray.config.errors import UserError
from latentsync_ray.config.lengths import Lengths
from latentsync_ray.config.loading import Variants
from latentsync_ray.config.plain import Parameters
from latentsync_ray.config.recipe import Recipe
from latentsync_ray.report.trials import TrialResult


class Ends:
    """Where trials end; worked out once for each trial's values.

    Args:
        recipe: The recipe before a trial's own values.
    """

    def __init__(self, recipe: Recipe):
        self._variants = Variants(recipe)
        self._known: dict[int, tuple[Parameters, Lengths]] = {}

    def steps_left(self, trial: TrialResult) -> Lengths:
        """Steps of each stage to the end of a trial, at most: the transition may come sooner."""
        whole = self._lengths(trial)
        if trial.transition_step is None:
            return Lengths(max(0, whole.first_stage - trial.global_step), whole.second_stage)
        return Lengths(0, max(0, whole.second_stage - trial.second_stage_step))

    def _lengths(self, trial: TrialResult) -> Lengths:
        known = self._known.get(trial.number)
        if known is None or known[0] != trial.config:
            try:
                recipe = self._variants.recipe(trial.config)
                lengths = Lengths(recipe.transition.latest_step, recipe.second_stage.num_steps)
            except UserError:
                lengths = Lengths(0, 0)  # it breaks a rule, and fails at its first step
            known = self._known[trial.number] = trial.config, lengths
        return known[1]
