"""A trial's checkpoint: a pointer to the segment that it has reached, and what it has seen on its way; no weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latentsync_ray.config.plain import Settings, plain
from latentsync_ray.core.segment import Segment
from latentsync_ray.core.transition import Observation

POINTER_FILE = "pointer.json"
"""Name of its file in a checkpoint's folder."""


@dataclass(frozen=True)
class Pointer:
    """Where a trial is."""

    last: Segment | None
    """The segment that it has reached the end of; None before the first step."""
    history: tuple[Observation, ...] = ()
    """The metrics at each boundary so far."""

    def to_json(self) -> Settings:
        """Plain values; `from_json` reads them."""
        last = None if self.last is None else self.last.to_dict()
        return {"last": last, "history": plain(self.history)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Pointer:
        """The pointer that `to_json` has made these values of."""
        history = tuple(Observation(step, metrics) for step, metrics in values["history"])
        return cls(values["last"] and Segment(**values["last"]), history)

    def to_text(self) -> str:
        """What a checkpoint's file holds; `from_text` reads it."""
        return json.dumps(self.to_json())

    @classmethod
    def from_text(cls, text: str) -> Pointer:
        """The pointer that a checkpoint's file holds."""
        return cls.from_json(json.loads(text))
