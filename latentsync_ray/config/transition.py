"""Settings of the transition: when a trial leaves stage one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from latentsync_ray.config.errors import Complaint


@dataclass(frozen=True)
class PlateauConfig:
    """True when the smoothed metric has not got better by `min_delta` for `patience_steps`."""

    metric: str = "val/recon"
    """A validation metric of which less is better."""
    patience_steps: int = 60
    """Steps without progress."""
    min_delta: float = 0.0
    """Relative improvement that counts as progress: 0.01 is one per cent of the best value so far."""
    smoothing: float = 0.0
    """Weight of the past in an exponential moving average, from 0 (none) to below 1."""

    def complaints(self) -> Iterator[Complaint]:
        """The rules that these values break."""
        if self.patience_steps < 1:
            yield "patience_steps", "must be at least 1", "raise it"
        if not 0 <= self.min_delta < 1:
            yield "min_delta", "must be at least 0 and below 1", "0.01 asks for one per cent"
        if not 0 <= self.smoothing < 1:
            yield "smoothing", "must be at least 0 and below 1", "0 switches it off"


@dataclass(frozen=True)
class BelowConfig:
    """True when the metric is below a value."""

    metric: str = "val/recon"
    """A validation metric of which less is better."""
    value: float = 0.0
    """The threshold."""

    def complaints(self) -> Iterator[Complaint]:
        """The rules that these values break."""
        if not math.isfinite(self.value):
            yield "value", "must be finite", "give a number"


@dataclass(frozen=True)
class TransitionConfig:
    """When to leave stage one: conditions on the history of validation metrics, and bounds."""

    max_step: int
    """Stage one ends here at the latest."""
    min_step: int = 0
    """Stage one does not end before."""
    at_step: int | None = None
    """True from this step on; 0 leaves stage one out."""
    plateau: PlateauConfig | None = None
    """True when a metric has stopped improving."""
    below: BelowConfig | None = None
    """True when a metric is low enough."""
    combine: Literal["any", "all"] = "any"
    """Whether one of the conditions given suffices or all of them must hold."""

    @property
    def latest_step(self) -> int:
        """Stage one ends here at the latest."""
        decides = self.combine == "any" or (self.plateau is None and self.below is None)
        return self.at_step if self.at_step is not None and decides else self.max_step

    @property
    def earliest_step(self) -> int:
        """Stage one does not end before, whatever the metrics are."""
        metrics = self.plateau is not None or self.below is not None
        if self.at_step is None:
            return self.min_step if metrics else self.max_step
        return self.min_step if metrics and self.combine == "any" else self.at_step

    def complaints(self) -> Iterator[Complaint]:
        """The rules that these values break."""
        if self.max_step < 1:
            yield "max_step", "must be at least 1", "raise it"
        if not 0 <= self.min_step <= self.max_step:
            yield "min_step", f"must be from 0 to max_step ({self.max_step})", "lower it or raise max_step"
        if self.at_step is not None and not self.min_step <= self.at_step <= self.max_step:
            bounds = f"min_step ({self.min_step}) to max_step ({self.max_step})"
            yield "at_step", f"must be from {bounds}", "move it or the bounds"
