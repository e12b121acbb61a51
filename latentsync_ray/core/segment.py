"""Segments: stretches of training between two report boundaries under constant hyperparameters.

A segment's key names its whole lineage back to step 0, so that within one environment a key has one result.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from latentsync_ray.config.recipe import Recipe, StageConfig

NUMERICS = 5
"""Raised by hand when a change of the code changes the numbers that training gives; a golden test guards it."""

FIRST_STAGE, SECOND_STAGE = "first_stage", "second_stage"

# What of a stage's settings does not change its numbers, by name.
_NOT_IN_KEY = ("report_every_steps", "num_steps")


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of training; equal keys mean equal results."""

    parent: str
    """Key of the segment before, or of the root for the first one."""
    stage: str
    """`first_stage` or `second_stage`."""
    config: Mapping[str, Any]
    """The stage's effective settings: plain values only."""
    start_step: int
    """global_step of the parent; the lineage implies it, so it is not in the key."""
    stage_start_step: int
    """global_step at which the stage began; the lineage implies it, so it is not in the key."""
    end_step: int
    """global_step at the end."""
    seed: int = 0
    """Of all random draws; the root's key implies it, so it is not in the key."""

    key: str = field(init=False)
    """SHA-256 of the canonical JSON of parent, stage, config and end_step, in hexadecimal."""

    def __post_init__(self) -> None:
        """Computes the key."""
        named = {"parent": self.parent, "stage": self.stage, "config": self.config, "end_step": self.end_step}
        object.__setattr__(self, "key", digest(named))

    @property
    def num_steps(self) -> int:
        """Optimizer steps in the segment."""
        return self.end_step - self.start_step

    @property
    def num_workers(self) -> int:
        """World size of the worker group that can train it."""
        return int(self.config["num_workers"])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; `Segment(**values)` reads them."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}


def digest(values: Any) -> str:
    """SHA-256 of the canonical JSON (sorted keys, no spaces, no NaN) of plain values."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def stage_settings(stage: StageConfig) -> dict[str, Any]:
    """The settings of a stage that its numbers depend on, as plain values."""
    plain = json.loads(json.dumps(vars(stage), default=vars))  # tuples become lists, as they will be when read back
    return {name: value for name, value in plain.items() if name not in _NOT_IN_KEY}


def root_key(recipe: Recipe, fingerprints: Mapping[str, str], extra: Mapping[str, Any] | None = None) -> str:
    """Key of the state before the first step.

    Args:
        recipe: Its seed, sample length and validation settings enter; paths do not.
        fingerprints: SHA-256 of the prepared data and of every frozen network, by name.
        extra: What else tells trainings apart, for example the environment or, without sharing, the trial.
    """
    validation = dataclasses.asdict(recipe.validation)
    del validation["objective"]  # its weights are applied by the trial, so they are not part of what is trained
    return digest(
        {
            "numerics": NUMERICS,
            "seed": recipe.seed,
            "training": recipe.training,
            "num_frames": recipe.data.num_frames,
            "fingerprints": dict(fingerprints),
            "validation": validation,
            "extra": dict(extra or {}),
        }
    )


def next_segment(recipe: Recipe, root: str, last: Segment | None, leave_first_stage: bool) -> Segment | None:
    """The segment that a trial trains after `last`, or None at the end of the trial.

    Args:
        recipe: The trial's effective recipe.
        root: Key of the state before the first step.
        last: What the trial trained last; None at its start.
        leave_first_stage: What the transition policy says, unless `last` belongs to stage two.
    """
    if last is None:
        stage, parent, start, stage_start = (SECOND_STAGE if leave_first_stage else FIRST_STAGE), root, 0, 0
    elif last.stage == FIRST_STAGE and leave_first_stage:
        stage, parent, start, stage_start = SECOND_STAGE, last.key, last.end_step, last.end_step
    else:
        stage, parent, start, stage_start = last.stage, last.key, last.end_step, last.stage_start_step
    config = recipe.first_stage if stage == FIRST_STAGE else recipe.second_stage
    if stage == SECOND_STAGE and start - stage_start >= recipe.second_stage.num_steps:
        return None
    # A clone, or what goes on from a stored segment, may stand between two boundaries.
    end = start + config.report_every_steps - (start - stage_start) % config.report_every_steps
    return Segment(parent, stage, stage_settings(config), start, stage_start, end, recipe.seed)
