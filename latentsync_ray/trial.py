"""A trial as Ray Tune sees it: it decides what comes next and asks the engine for it; it computes nothing."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune

from latentsync_ray.config import Recipe
from latentsync_ray.configfiles import with_overrides
from latentsync_ray.segment import FIRST_STAGE, SECOND_STAGE, Segment, digest, next_segment, root_key
from latentsync_ray.transition import Observation, divergence, objective, should_transition

MEMORY_BYTES = 300 * 2**20
"""What a trial reserves: memory only, so that trials cannot starve worker groups of CPUs."""
_POINTER = "pointer.json"


@dataclass(frozen=True)
class TrialSetup:
    """What all trials of a search have in common."""

    engine: str
    """Name of the engine's actor."""
    recipe: Recipe
    """The recipe before a trial's own values."""
    fingerprints: dict[str, str]
    """Of the prepared data and the frozen networks."""
    extra: dict[str, Any]
    """What else enters the root key."""
    share: bool
    """Whether trials may have segments in common."""
    lineage: tuple[dict[str, Any], ...] = ()
    """Segments that every trial goes through first, from step 0 on, as `Segment.to_dict` gives them."""
    leave_after: bool = False
    """Whether stage two follows them, whatever the transition policy says."""


class Trial(tune.Trainable):  # type: ignore[misc]
    """One step is one segment. The state is a pointer: the last segment, and the history of metrics."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """Memory only."""
        return tune.PlacementGroupFactory([{"CPU": 0, "memory": MEMORY_BYTES}])

    def setup(self, config: dict[str, Any], setup: TrialSetup) -> None:
        """Begins before the first step."""
        self.common = setup
        self.engine = ray.get_actor(setup.engine)
        self._adopt(config)
        self.last: Segment | None = None
        self.history: list[Observation] = []

    def step(self) -> dict[str, Any]:
        """Decides the stage, asks for the next segment, and reports its metrics."""
        given, past = self.common.lineage, len(self.history)
        in_first_stage = self.last is None or self.last.stage == FIRST_STAGE
        leave = in_first_stage and should_transition(self.recipe.transition, self.history)
        leave = leave or (self.common.leave_after and past == len(given))
        segment = Segment(**given[past]) if past < len(given) else None
        segment = segment or next_segment(self.recipe, self.root, self.last, leave)
        assert segment is not None, "a trial that is done was asked to go on"

        answer = ray.get(self.engine.run.remote(*self.asker, self.root, segment.to_dict()))
        second_stage_step = segment.end_step - segment.stage_start_step if segment.stage == SECOND_STAGE else 0
        place = {"global_step": segment.end_step, "stage": segment.stage, "second_stage_step": second_stage_step}
        if "unfinished" in answer:  # the search ends here, so nobody reads it
            return {**place, "unfinished": answer["unfinished"], "done": True}
        if "error" in answer:
            # An exception would have Ray Tune begin the trial again, to meet the same error.
            return {**place, "error": answer["error"], "diverged": answer["diverged"], "done": True}

        metrics = {**answer["metrics"]}
        metrics["val/objective"] = objective(metrics, self.recipe.validation.objective)
        self.last = segment
        self.history.append(Observation(segment.end_step, metrics))
        factor, weights = self.recipe.divergence_factor, self.recipe.validation.objective
        if factor is not None and (diverged := divergence(factor, weights, self.history)):
            place |= {"error": diverged, "diverged": True}
        at_end = second_stage_step >= self.recipe.second_stage.num_steps
        # Ray Tune also sets `done` in the result of a trial that its scheduler stops; `at_end` stays ours.
        ending = {"at_end": at_end, "done": at_end or "error" in place}
        return {**metrics, **place, "cached": answer["cached"], "key": answer["key"], **ending}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes the pointer: a few kilobytes, no weights."""
        pointer = {"last": self.last and self.last.to_dict(), "history": self.history}
        (Path(checkpoint_dir) / _POINTER).write_text(json.dumps(pointer), encoding="utf-8")

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Reads a pointer, this trial's own or another one's."""
        pointer = json.loads((Path(checkpoint_dir) / _POINTER).read_text(encoding="utf-8"))
        self.last = pointer["last"] and Segment(**pointer["last"])
        self.history = [Observation(step, metrics) for step, metrics in pointer["history"]]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes another trial's place in this process, at its beginning."""
        ray.get(self.engine.leave.remote(*self.asker))
        self._adopt(new_config)
        self.last, self.history = None, []
        return True

    def cleanup(self) -> None:
        """Tells the engine that nobody waits here any more."""
        ray.get(self.engine.leave.remote(*self.asker))

    def _adopt(self, config: dict[str, Any]) -> None:
        common = self.common
        self.asker = self.trial_id, uuid.uuid4().hex
        self.recipe = with_overrides(common.recipe, config, "trial")
        extra = common.extra if common.share else {**common.extra, "trial": trial_identity(config, self.trial_id)}
        self.root = root_key(self.recipe, common.fingerprints, extra)


def trial_number(trial_id: str) -> int:
    """Ray Tune numbers trials in the order of their creation, after an underscore."""
    return int(trial_id.rpartition("_")[2])


def trial_identity(config: dict[str, Any], trial_id: str) -> str:
    """Names a trial the same in every run of the same search."""
    return f"{trial_number(trial_id)}-{digest(config)[:16]}"
