"""A trial as Ray Tune sees it: a walk through segments that schedulers can pause, stop, and make another's clone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import tune

from latentsync_ray.cluster.resources import TRIAL_MEMORY_BYTES
from latentsync_ray.config.plain import Parameters, Settings
from latentsync_ray.core.hashing import digest
from latentsync_ray.report.names import name_of
from latentsync_ray.search.pointer import POINTER_FILE, Pointer
from latentsync_ray.search.reported import TuneResult
from latentsync_ray.search.walk import TrialSetup, Walk

TRIAL_NUMBER = "trial_number"
"""Entry of a trial's config that holds its number, where Ray Tune does not number trials itself."""


class Trial(tune.Trainable):  # type: ignore[misc]
    """One step is one segment. The state is a pointer: the last segment, and the history of metrics."""

    walk: Walk
    """Where the trial is, and what comes next."""

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
        """Goes through the next segment, and reports its metrics."""
        return self.walk.step().to_result()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes the pointer: a few kilobytes, no weights. The state that it points to is kept until the next one."""
        self.walk.hold()
        course = self.walk.course
        pointer = Pointer(course.last, tuple(course.history))
        (Path(checkpoint_dir) / POINTER_FILE).write_text(pointer.to_text(), encoding="utf-8")

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Reads a pointer, this trial's own or another one's."""
        pointer = Pointer.from_text((Path(checkpoint_dir) / POINTER_FILE).read_text(encoding="utf-8"))
        self.walk.course.resume(pointer.last, pointer.history)

    def reset_config(self, new_config: Parameters) -> bool:
        """Takes another trial's place in this process, at its beginning."""
        self.cleanup()
        self._adopt(new_config)
        return True

    def cleanup(self) -> None:
        """Tells the engine that nobody waits here any more."""
        self.walk.end()

    def _adopt(self, config: Parameters) -> None:
        name, identity = trial_name(self.trial_id, config), trial_identity(self.trial_id, config)
        self.walk = Walk(self.common, self.engine, name, parameters(config), identity)


def trial_number(trial_id: str, config: Parameters) -> int:
    """A trial's number, in the order of creation; Ray Tune's variant generator puts it after an underscore."""
    given = config.get(TRIAL_NUMBER)
    return given if isinstance(given, int) else int(trial_id.rpartition("_")[2])


def trial_name(trial_id: str, config: Parameters) -> str:
    """What a trial is called in folders and notes, the same in every run of the same search."""
    return name_of(trial_number(trial_id, config))


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
