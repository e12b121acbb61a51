"""What is known of a segment that was trained, and what a store keeps of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from latentsync_ray.config.plain import Settings, settings
from latentsync_ray.core.segment import Metrics, Segment


@dataclass(frozen=True, slots=True)
class Timings:
    """How long the parts of an order took."""

    restore_seconds: float
    train_seconds: float
    validate_seconds: float
    publish_seconds: float = 0.0
    """Of the segment that the worker published before: a record is written before its own publishing has ended."""
    wait_seconds: float = 0.0
    """For the order, since the one before was published."""


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a segment was trained."""

    peak_memory_bytes: int = 0
    """Most memory at any time that tensors held on the GPU, or, without one, the process; of rank 0."""
    samples_per_second: float | None = None
    """Of all ranks together; None if the training does not know."""
    mfu: float | None = None
    """Model-FLOPs utilisation, from 0 to 1; None if FLOPs or the device's peak are not known."""


@dataclass(frozen=True, slots=True)
class StoredState:
    """The file with a segment's state."""

    sha256: str
    """Of the file."""
    num_bytes: int
    """Of the file."""
    kept: bool = True
    """Whether it is there; False once it was dropped."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What a worker knows of a segment that it has trained."""

    segment: Segment
    metrics: Metrics
    """At the end: of validation, and the means of the losses."""
    steps: Sequence[Metrics]
    """The losses of each step."""
    start_weights_sha256: str | None
    """`weights_sha256` of what was restored; None if the worker went on with what it had in memory."""
    weights_sha256: str
    """`weights_sha256` at the end."""
    environment: Mapping[str, str]
    """What the last bits may depend on besides the segment."""
    timings: Timings
    speed: Speed


@dataclass(frozen=True, slots=True)
class Record(Trained):
    """A segment as the store keeps it."""

    state: StoredState
    preview_sha256: str | None
    """Of the picture's file, if the training shows one."""
    terms_sha256: str | None = None
    """Of the file with the validation terms of each sample, if the training tells them."""

    @property
    def key(self) -> str:
        """The segment's key."""
        return self.segment.key

    def to_json(self) -> Settings:
        """Plain values; `from_json` reads them."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "segment"}
        return {"key": self.key, "segment": self.segment.to_dict(), **settings(values)}

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> Record:
        """Reads what `to_json` gave.

        Raises:
            LookupError, TypeError: The values are something else.
        """
        fields = {f.name: values[f.name] for f in dataclasses.fields(cls)}
        fields["segment"] = Segment(**values["segment"])  # type: ignore[arg-type]
        fields["timings"] = Timings(**values["timings"])  # type: ignore[arg-type]
        fields["speed"] = Speed(**values["speed"])  # type: ignore[arg-type]
        fields["state"] = StoredState(**values["state"])  # type: ignore[arg-type]
        record = cls(**fields)  # type: ignore[arg-type]
        if record.key != values["key"]:
            raise LookupError("it is the record of another segment")
        return record


@dataclass(frozen=True, slots=True)
class Partial:
    """How far a worker came that had to leave its node in the middle of a segment."""

    steps: Sequence[Metrics]
    """The losses of each step behind it."""
    start_weights_sha256: str | None
    """As in the record."""
    state: StoredState
    """Of the last step."""
