"""A trial as Ray Tune sees it: it decides what comes next and asks the engine for it; it computes nothing."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import tune

from latentsync_ray.cluster.resources import TRIAL_MEMORY_BYTES
from latentsync_ray.config.errors import UserError
from latentsync_ray.config.plain import Parameters, Settings
from latentsync_ray.config.recipe import OBJECTIVE
from latentsync_ray.core.course import Course
from latentsync_ray.core.hashing import digest
from latentsync_ray.core.segment import Metrics, Segment
from latentsync_ray.core.transition import divergence, objective
from latentsync_ray.core.trial_recipe import TrialRecipe
from latentsync_ray.engine.messages import Answer, Branch, Failed, Finished
from latentsync_ray.report.trials import Boundary
from latentsync_ray.search.pointer import POINTER_FILE, Pointer
from latentsync_ray.search.reported import Reported, TuneResult

TRIAL_NUMBER = "trial_number"
"""Entry of a trial's config that holds its number, where Ray Tune does not number trials itself."""


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


class Trial(tune.Trainable):  # type: ignore[misc]
    """One step is one segment. The state is a pointer: the last segment, and the history of metrics."""

    course: Course
    """Where the trial is, and what comes next."""
    ahead: Mapping[str, Metrics]
    """Metrics, by key, of segments that come next for which it need not ask."""

    @classmethod
    def default_resource_request(cls, config: Parameters) -> tune.PlacementGroupFactory:
        """Memory only."""
        return tune.PlacementGroupFactory([{"CPU": 0, "memory": TRIAL_MEMORY_BYTES}])

    def setup(self, config: Parameters, setup: TrialSetup) -> None:
        """Begins before the first step."""
        self.common = setup
        self.engine = ray.get_actor(setup.engine)
        self._adopt(config)

    def step(self) -> TuneResult:
        """Decides the stage, asks for the next segment, and reports its metrics."""
        if self.refused is not None:
            step = self.course.last.end_step if self.course.last is not None else 0
            return Reported(step, 0, error=self.refused, cost=self.course.cost).to_result()
        segment = self.course.next()
        assert segment is not None, "a trial that is done was asked to go on"
        answer = self._ask(segment)
        if isinstance(answer, Finished):
            return self._reached(segment, answer).to_result()
        # An exception would have Ray Tune begin the trial again, to meet the same error.
        error, diverged = (answer.error, answer.diverged) if isinstance(answer, Failed) else ("", False)
        place = segment.end_step, segment.second_stage_step
        return Reported(*place, error=error, diverged=diverged, cost=self.course.cost).to_result()

    def _reached(self, segment: Segment, answer: Finished) -> Reported:
        """Goes on to the end of a segment."""
        course, weights = self.course, self.course.recipe.objective
        metrics = {**answer.metrics, OBJECTIVE: objective(answer.metrics, weights)}
        course.passed(segment, metrics)
        factor = course.recipe.decisions.divergence_factor
        error = None if factor is None else divergence(factor, weights, course.history)
        boundary = Boundary.after(segment, metrics, course.at_end, course.cost)
        return Reported.reached(boundary, segment.start_step, answer.cached, error)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes the pointer: a few kilobytes, no weights. The state that it points to is kept until the next one."""
        last = self.course.last
        if last is not None:
            ray.get(self.engine.checkpoint.remote(self.asker[0], last.key))
        pointer = Pointer(last, tuple(self.course.history))
        (Path(checkpoint_dir) / POINTER_FILE).write_text(pointer.to_text(), encoding="utf-8")

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Reads a pointer, this trial's own or another one's."""
        pointer = Pointer.from_text((Path(checkpoint_dir) / POINTER_FILE).read_text(encoding="utf-8"))
        self.course.resume(pointer.last, pointer.history)

    def reset_config(self, new_config: Parameters) -> bool:
        """Takes another trial's place in this process, at its beginning."""
        self.cleanup()
        self._adopt(new_config)
        return True

    def cleanup(self) -> None:
        """Tells the engine that nobody waits here any more."""
        last = self.course.last
        ray.get(self.engine.end_trial.remote(*self.asker, last and last.key))

    def _ask(self, segment: Segment) -> Answer:
        """The engine's answer, which it may have given ahead."""
        if segment.key in self.ahead:
            return Finished(self.ahead[segment.key], cached=True, ahead={})
        branch = Branch.ahead(self.course.recipe, segment)
        answer: Answer = ray.get(self.engine.run.remote(*self.asker, self.course.root, segment, branch))
        self.ahead = answer.ahead if isinstance(answer, Finished) else {}
        return answer

    def _adopt(self, config: Parameters) -> None:
        common = self.common
        self.asker = trial_name(self.trial_id, config), uuid.uuid4().hex
        self.ahead = {}
        self.refused: str | None = None
        recipe = common.recipe
        try:
            recipe = recipe.with_values(parameters(config))
        except UserError as error:
            self.refused = str(error)
        extra = common.extra if common.share else {**common.extra, "trial": trial_identity(self.trial_id, config)}
        root = recipe.root_key(common.fingerprints, extra)
        self.course = Course(recipe, root, common.lineage, common.leave_after)


def trial_number(trial_id: str, config: Parameters) -> int:
    """A trial's number, in the order of creation; Ray Tune's variant generator puts it after an underscore."""
    given = config.get(TRIAL_NUMBER)
    return given if isinstance(given, int) else int(trial_id.rpartition("_")[2])


def trial_name(trial_id: str, config: Parameters) -> str:
    """What a trial is called in folders and notes, the same in every run of the same search."""
    return f"trial-{trial_number(trial_id, config):04d}"


def parameters(config: Mapping[str, Any]) -> Settings:
    """What a trial's config says about the recipe, as plain values: some schedulers draw numpy's."""
    return {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in config.items()
        if name != TRIAL_NUMBER
    }


def trial_identity(trial_id: str, config: Parameters) -> str:
    """Names a trial the same in every run of the same search."""
    return f"{trial_number(trial_id, config)}-{digest(parameters(config))[:16]}"
