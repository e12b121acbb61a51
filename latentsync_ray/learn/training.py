"""What a worker asks of a two-stage training, so that any training can take LatentSync's place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from latentsync_ray.config import ComponentsConfig, StageConfig, ValidationConfig


class Training(Protocol):
    """What the worker needs of a training. All of it is a pure function of settings, state and step."""

    def __init__(self, setup: TrainingSetup):
        """Loads what all segments have in common."""
        ...

    @staticmethod
    def check(config: StageConfig, start: str | None) -> None:
        """Raises a ValueError or TypeError if a stage cannot be built so; takes neither memory nor time.

        A UserError says that what it is to start from does not fit.

        Args:
            config: The stage's settings.
            start: Weights that it is to start from (`components.unet`), if it is the one to start.
        """
        ...

    def build(self, stage: str, config: StageConfig, state: Mapping[str, Tensor] | None, state_stage: str) -> None:
        """Makes the stage ready to train from a state (None: from the initial weights).

        Args:
            stage: `first_stage` or `second_stage`.
            config: The stage's settings.
            state: What `state` returned at the end of the parent segment, on the CPU.
            state_stage: The stage that the state belongs to; if it is another one, only the weights are taken.
        """
        ...

    def step(self, global_step: int, stage_step: int) -> dict[str, float]:
        """Takes one optimizer step, the one that leads from global_step to the next. Returns its losses."""
        ...

    def validate(self) -> dict[str, float]:
        """Metrics on the fixed validation set, equal on all ranks."""
        ...

    def preview(self) -> Tensor | None:
        """A picture (H, W, 3), uint8, of what it makes, if there is something to see; rank 0 alone is asked."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything that training goes on from: `model.*` and `optimizer.*`, on the CPU."""
        ...


class Samples(Protocol):
    """Where training and validation samples come from: pure functions of their arguments."""

    def train_sample(self, seed: int, global_step: int, index: int, num_frames: int) -> dict[str, Any]:
        """One sample of the global batch."""
        ...

    def validation_samples(self, num_samples: int, num_frames: int, seed: int) -> Sequence[dict[str, Any]]:
        """The fixed validation set."""
        ...


@dataclass(frozen=True)
class TrainingSetup:
    """What stays the same for all segments that a worker trains."""

    samples: Samples
    """Prepared clips."""
    components: ComponentsConfig
    """The frozen networks."""
    validation: ValidationConfig
    """The fixed validation."""
    num_frames: int
    """Frames of a sample."""
    seed: int
    """Of the initial weights, samples, timesteps and noise."""
    device: torch.device
    """Where this worker computes."""
    rank: int = 0
    """This worker's number."""
    world_size: int = 1
    """Number of workers."""
