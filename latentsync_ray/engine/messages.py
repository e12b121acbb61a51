"""What passes between the engine and its worker groups. Light to import: the engine needs none of the networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

from latentsync_ray.config.plain import Settings
from latentsync_ray.config.search import WorkersConfig


@dataclass(frozen=True)
class GroupSetup:
    """What worker groups are started with; it is known before the clips are."""

    engine: str
    """Name of the engine's actor."""
    workers: WorkersConfig
    """How many groups there may be, and what each of their processes takes."""
    training: str
    """`module:class` of the two-stage training that takes the steps."""
    storage: str
    """Folder or URI of the store."""
    results: str
    """Folder or URI below which Ray may write its own files."""
    preemptible: bool
    """Whether nodes may be taken away, of which a notice is looked for after every step."""


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker needs besides its orders, from when the inputs are ready."""

    recipe: Settings
    """The recipe as plain data, with the places of its inputs."""


class WorkerOrder(TypedDict):
    """One segment to train."""

    segment: dict[str, Any]
    """As `Segment.to_dict` gives it."""
    parent_state: dict[str, Any] | None
    """The entry `state` of the parent's record; None at step 0."""
    parent_stage: str
    """The stage that the parent's state belongs to; empty at step 0."""


class SegmentOutcome(TypedDict):
    """What the engine needs to know of a segment that was trained and published; the entries of its record."""

    metrics: dict[str, float]
    state: dict[str, Any]
    timings: dict[str, float]
