"""What passes between the engine and its workers. Light to import: the engine needs none of the networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

from latentsync_ray.config import ComponentsConfig, ValidationConfig


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker needs besides its orders."""

    engine: str
    """Name of the engine's actor."""
    storage: str
    """Folder or URI of the store."""
    data_folder: str
    """Prepared clips."""
    components: ComponentsConfig
    """The frozen networks."""
    validation: ValidationConfig
    """The fixed validation."""
    num_frames: int
    """Frames of a sample."""
    seed: int
    """The recipe's seed."""
    preemptible: bool
    """Whether nodes may be taken away, of which a notice is looked for after every step."""
    training: str
    """`module:class` of the two-stage training that takes the steps."""


class WorkerOrder(TypedDict):
    """One segment to train."""

    segment: dict[str, Any]
    """As `Segment.to_dict` gives it."""
    parent_state: dict[str, Any] | None
    """The entry `state` of the parent's record; None at step 0."""
    parent_stage: str
    """The stage that the parent's state belongs to; empty at step 0."""
