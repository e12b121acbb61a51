"""The way of a trial through its segments: what comes next. Trials, plans, simulations and prefetching follow it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

from latentsync_ray.config.length import cost, first_stage_steps, second_stage_steps
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
        following = self._following()
        if following is None:
            return None
        stage, stage_start, end = following
        parent, start = (self.last.key, self.last.end_step) if self.last else (self.root, 0)
        return Segment(
            parent, stage, self.recipe.segment_settings(stage), start, stage_start, end, self.recipe.seed(stage)
        )

    def _following(self) -> tuple[str, int, int] | None:
        """Stage, its start and the end of the segment after those that are given; None at the end of the trial."""
        decisions, last = self.recipe.decisions, self.last
        in_first_stage = last is None or last.stage == FIRST_STAGE
        leaves = in_first_stage and should_transition(decisions.transition, self.history)
        start = last.end_step if last else 0
        if leaves or (self._leave_after and len(self.history) == len(self._given)):
            stage, stage_start = SECOND_STAGE, start
        else:
            stage, stage_start = (last.stage, last.stage_start_step) if last else (FIRST_STAGE, 0)
        done, every = start - stage_start, self.recipe.report_every_steps(stage)
        # A clone, or a trial that goes on from a stored segment, may stand between two boundaries.
        end = start + every - done % every
        if stage == SECOND_STAGE:
            return None if done >= second_stage_steps(decisions, stage_start) else (stage, stage_start, end)
        longest = first_stage_steps(decisions)
        return None if longest is not None and end > longest else (stage, stage_start, end)

    def passed(self, segment: Segment, metrics: Mapping[str, float]) -> None:
        """The trial has been given a segment; its metrics are what a policy looks at."""
        self.last = segment
        self.history.append(Observation(segment.end_step, metrics))

    def resume(self, last: Segment | None, history: Sequence[Observation]) -> None:
        """Puts the trial where it, or another one whose way it takes over, has been."""
        self.last, self.history = last, list(history)

    @property
    def at_end(self) -> bool:
        """Whether the trial has all its steps behind it."""
        return len(self.history) >= len(self._given) and bool(self.history) and self._following() is None

    @property
    def cost(self) -> float:
        """Relative cost of what is behind the trial."""
        last = self.last
        return cost(self.recipe.decisions, last.end_step, last.second_stage_step) if last else 0.0


def first_stage_segments(recipe: TrialRecipe, root: str, end_step: int) -> list[Segment]:
    """The segments of stage one from its first step to the boundary at or after a step, whatever the policy says."""
    never = TransitionConfig(max_step=sys.maxsize)
    decisions = replace(recipe.decisions, transition=never, length=None)
    course = Course(replace(recipe, decisions=decisions), root)
    segments: list[Segment] = []
    while not segments or segments[-1].end_step < end_step:
        segment = course.next()
        assert segment is not None, "nothing ends stage one here"
        segments.append(segment)
        course.passed(segment, {})
    return segments
