"""Validation terms of each fixed sample, before they are averaged: what trials are compared pair by pair by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latentsync_ray.config.plain import Settings


@dataclass(frozen=True, slots=True)
class Terms:
    """The validation terms at the end of one segment, a value for each pair of a fixed sample and its fixed noise.

    All sequences have the same length N, and every segment of a search has the same N pairs in the same order.
    """

    clips: Sequence[str]
    """The recording that a pair's sample is from; pairs of one clip are not independent."""
    groups: Sequence[str]
    """What clips have in common, for example the speaker; the clip itself where nothing is known."""
    values: Mapping[str, Sequence[float]]
    """Metric, such as `val/recon` -> its N values, whose mean is the metric."""

    def means(self) -> dict[str, float]:
        """The metrics, by name."""
        return {name: math.fsum(values) / len(values) for name, values in self.values.items()}

    def to_json(self) -> Settings:
        """Plain values; `from_json` reads them."""
        return {
            "clips": list(self.clips),
            "groups": list(self.groups),
            "values": {name: list(values) for name, values in self.values.items()},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Terms:
        """Reads what `to_json` gave."""
        return cls(values["clips"], values["groups"], values["values"])
