"""Segments: stretches of training between two report boundaries under constant hyperparameters.

A segment's key names its whole lineage back to step 0, so that within one environment a key has one result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from latentsync_ray.config.plain import Settings
from latentsync_ray.config.recipe import SECOND_STAGE
from latentsync_ray.core.hashing import digest

Metrics: TypeAlias = Mapping[str, float]
"""What is measured at a segment's end, by name."""
NUMERICS = 6
"""Raised by hand when a change of the code changes the numbers that training gives; a golden test guards it."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of training; equal keys mean equal results."""

    parent: str
    """Key of the segment before, or of the root for the first one."""
    stage: str
    """`first_stage` or `second_stage`."""
    config: Settings
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
    def second_stage_step(self) -> int:
        """Steps of stage two up to its end."""
        return self.end_step - self.stage_start_step if self.stage == SECOND_STAGE else 0

    @property
    def num_workers(self) -> int:
        """World size of the worker group that can train it."""
        num_workers = self.config["num_workers"]
        assert isinstance(num_workers, int)
        return num_workers

    def sharing_config(self, other: Segment) -> Segment:
        """The same segment with the settings object of another one, if the two are equal.

        Settings take 8 kB, so that a process with 100,000 segments must not hold them once for each.
        """
        if other.config is self.config or other.config != self.config:
            return self
        values = self.parent, self.stage, other.config, *self._steps_and_seed
        return _with_key(values, self.key)

    def __reduce__(self) -> tuple[Any, ...]:
        """Passes the key to another process, which need not compute it again."""
        return _with_key, ((self.parent, self.stage, self.config, *self._steps_and_seed), self.key)

    @property
    def _steps_and_seed(self) -> tuple[int, int, int, int]:
        return self.start_step, self.stage_start_step, self.end_step, self.seed

    def to_dict(self) -> Settings:
        """Plain values, for JSON; `Segment(**values)` reads them."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}


_FIELDS = ("parent", "stage", "config", "start_step", "stage_start_step", "end_step", "seed")
"""The arguments of `Segment`, in order."""


def _with_key(values: tuple[Any, ...], key: str) -> Segment:
    """A segment from its fields and the key that they have."""
    segment = Segment.__new__(Segment)
    for name, value in zip(_FIELDS, values, strict=True):
        object.__setattr__(segment, name, value)
    object.__setattr__(segment, "key", key)
    return segment
