"""A trial's way through its segments: it decides what comes next and asks the engine for it; it computes nothing."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray

from latentsync_ray.config.errors import UserError
from latentsync_ray.config.plain import Parameters, Settings
from latentsync_ray.config.recipe import OBJECTIVE
from latentsync_ray.core.course import Course
from latentsync_ray.core.segment import Metrics, Segment
from latentsync_ray.core.transition import divergence, objective
from latentsync_ray.core.trial_recipe import TrialRecipe
from latentsync_ray.engine.messages import Answer, Branch, Failed, Finished
from latentsync_ray.report.trials import Boundary
from latentsync_ray.search.reported import Reported


@dataclass(frozen=True)
class TrialSetup:
    """What all trials of a search have in common."""

    engine: str
    """Name of the engine's actor."""
    recipe: TrialRecipe
    """The recipe before a trial's own values."""
    fingerprints: Mapping[str, str]
    """Of what the training reads."""
    extra: Settings
    """What else enters the root key."""
    share: bool
    """Whether trials may have segments in common."""
    lineage: tuple[Segment, ...] = ()
    """Segments that every trial goes through first, from step 0 on."""
    leave_after: bool = False
    """Whether stage two follows them, whatever the transition policy says."""

    def root_key(self, recipe: TrialRecipe) -> str:
        """Key of the state before the first step of a trial that shares."""
        return recipe.root_key(self.fingerprints, self.extra)


class Walk:
    """One trial under its own values, from its beginning.

    Args:
        setup: What all trials have in common.
        engine: The engine's actor.
        name: What the engine calls the trial.
        values: The trial's own, by dotted name.
        identity: Names the trial the same in every run of the search; it keeps its segments to itself where trials
            do not share.
    """

    def __init__(self, setup: TrialSetup, engine: Any, name: str, values: Parameters, identity: str):
        self._engine, self._name, self._process = engine, name, uuid.uuid4().hex
        self._ahead: Mapping[str, Metrics] = {}
        self._refused: str | None = None
        recipe = setup.recipe
        try:
            recipe = recipe.with_values(values)
        except UserError as error:
            self._refused = str(error)
        extra = setup.extra if setup.share else {**setup.extra, "trial": identity}
        root = recipe.root_key(setup.fingerprints, extra)
        self.course = Course(recipe, root, setup.lineage, setup.leave_after)
        """Where the trial is, and what comes next."""

    def step(self) -> Reported:
        """Decides the stage, asks for the next segment, and says what came of it."""
        course = self.course
        if self._refused is not None:
            step = course.last.end_step if course.last is not None else 0
            return Reported(step, 0, error=self._refused, cost=course.cost)
        segment = course.next()
        assert segment is not None, "a trial that is done was asked to go on"
        answer = self._ask(segment)
        if isinstance(answer, Finished):
            return self._reached(segment, answer)
        # An exception would have Ray Tune begin the trial again, to meet the same error.
        error, diverged = (answer.error, answer.diverged) if isinstance(answer, Failed) else ("", False)
        place = segment.end_step, segment.second_stage_step
        return Reported(*place, error=error, diverged=diverged, cost=course.cost)

    def hold(self) -> None:
        """Has the state where the trial is kept until the next call."""
        if self.course.last is not None:
            ray.get(self._engine.checkpoint.remote(self._name, self.course.last.key))

    def end(self) -> None:
        """Tells the engine that nobody waits here any more."""
        last = self.course.last
        ray.get(self._engine.end_trial.remote(self._name, self._process, last and last.key))

    def _ask(self, segment: Segment) -> Answer:
        """The engine's answer, which it may have given ahead."""
        if segment.key in self._ahead:
            return Finished(self._ahead[segment.key], cached=True, ahead={})
        branch = Branch.ahead(self.course.recipe, segment)
        asked = self._engine.run.remote(self._name, self._process, self.course.root, segment, branch)
        answer: Answer = ray.get(asked)
        self._ahead = answer.ahead if isinstance(answer, Finished) else {}
        return answer

    def _reached(self, segment: Segment, answer: Finished) -> Reported:
        """Goes on to the end of a segment."""
        course, weights = self.course, self.course.recipe.objective
        metrics = {**answer.metrics, OBJECTIVE: objective(answer.metrics, weights)}
        course.passed(segment, metrics)
        factor = course.recipe.decisions.divergence_factor
        error = None if factor is None else divergence(factor, weights, course.history)
        boundary = Boundary.after(segment, metrics, course.at_end, course.cost)
        return Reported.reached(boundary, segment.start_step, answer.cached, error)
