"""The way of a trial through its segments: what comes next. Trials, plans, simulations and prefetching follow it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from latentsync_ray.config.recipe import FIRST_STAGE, SECOND_STAGE
from latentsync_ray.config.transition import TransitionConfig
from latentsync_ray.core.segment import Segment
from latentsync_ray.core.transition import Observation, should_transition
from latentsync_ray.core.trial_recipe import TrialRecipe


class Course:
    """Where a trial is, and the segment that comes next.

    Args:
        recipe: The trial's own.
        root: Key of the state before the first step.
        given: Segments that the trial goes through first, from step 0 on.
        leave_after: Whether stage two follows them, whatever the transition policy says.
    """

    def __init__(self, recipe: TrialRecipe, root: str, given: Sequence[Segment] = (), leave_after: bool = False):
        self.recipe, self.root = recipe, root
        self.last: Segment | None = None
        """The segment that ended where the trial is; None before the first step."""
        self.history: list[Observation] = []
        """The metrics at each boundary so far."""
        self._given, self._leave_after = given, leave_after

    def next(self) -> Segment | None:
        """The segment that follows, or None at the end of the trial."""
        past = len(self.history)
        if past < len(self._given):
            return self._given[past]
        last = self.last
        in_first_stage = last is None or last.stage == FIRST_STAGE
        leaves = in_first_stage and should_transition(self.recipe.decisions.transition, self.history)
        if leaves or (self._leave_after and past == len(self._given)):
            stage, stage_start = SECOND_STAGE, last.end_step if last else 0
        else:
            stage, stage_start = (last.stage, last.stage_start_step) if last else (FIRST_STAGE, 0)
        parent, start = (last.key, last.end_step) if last else (self.root, 0)
        done = start - stage_start
        if stage == SECOND_STAGE and done >= self.recipe.decisions.second_stage.num_steps:
            return None
        # A clone, or a trial that goes on from a stored segment, may stand between two boundaries.
        every = self.recipe.report_every_steps(stage)
        end = start + every - done % every
        return Segment(
            parent, stage, self.recipe.segment_settings(stage), start, stage_start, end, self.recipe.decisions.seed
        )

    def passed(self, segment: Segment, metrics: Mapping[str, float]) -> None:
        """The trial has been given a segment; its metrics are what a policy looks at."""
        self.last = segment
        self.history.append(Observation(segment.end_step, metrics))

    def resume(self, last: Segment | None, history: Sequence[Observation]) -> None:
        """Puts the trial where it, or another one whose way it takes over, has been."""
        self.last, self.history = last, list(history)

    @property
    def at_end(self) -> bool:
        """Whether the trial has all steps of stage two behind it."""
        last = self.last
        if last is None or last.stage != SECOND_STAGE:
            return False
        return last.end_step - last.stage_start_step >= self.recipe.decisions.second_stage.num_steps


def first_stage_segments(recipe: TrialRecipe, root: str, end_step: int) -> list[Segment]:
    """The segments of stage one from its first step to the boundary at or after a step, whatever the policy says."""
    decisions = replace(recipe.decisions, transition=TransitionConfig(max_step=max(end_step, 1)))
    course = Course(replace(recipe, decisions=decisions), root)
    segments: list[Segment] = []
    while (segment := course.next()) is not None and segment.stage == FIRST_STAGE:
        segments.append(segment)
        course.passed(segment, {})
    return segments
