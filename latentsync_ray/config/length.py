"""The whole length of a trial: what both stages together may take, so that trials are compared at equal cost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

from latentsync_ray.config.errors import Complaint

_ROUNDING = 1e-9
"""Share of a step that the rounding of costs may amount to."""


@dataclass(frozen=True)
class LengthConfig:
    """The same length for every trial; stage two gets what stage one leaves, rounded down to a report boundary."""

    alternatives: ClassVar[tuple[str, ...]] = ("steps", "cost")

    steps: int | None = None
    """Optimizer steps of both stages together. Give either this or `cost`."""
    cost: float | None = None
    """Relative cost of both stages together, in the units of the two costs below."""
    first_stage: float = 1.0
    """Relative cost of a step of stage one."""
    second_stage: float = 1.0
    """Relative cost of a step of stage two; `latentsync-ray plan --probe` prints the measured ones."""

    def complaints(self) -> Iterator[Complaint]:
        """The rules that these values break."""
        if (self.steps is None) == (self.cost is None):
            yield (
                "steps",
                "must be given where `cost` is not, and only there",
                "give one of the two, and null for the other",
            )
        if self.steps is not None and self.steps < 1:
            yield "steps", "must be at least 1", "raise it"
        if self.cost is not None and not (math.isfinite(self.cost) and self.cost > 0):
            yield "cost", "must be finite and above 0", "raise it"
        for name in ("first_stage", "second_stage"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                yield name, "must be finite and above 0", "1 is the cost of one step"
            elif self.steps is not None and value != 1:
                yield name, "must be 1 where `steps` counts every step alike", "give `cost` instead of `steps`"

    @property
    def total(self) -> float:
        """The length in units of cost."""
        whole = self.cost if self.cost is not None else self.steps
        assert whole is not None
        return float(whole)

    def first_stage_steps(self, every: int) -> int:
        """Steps of a trial that never leaves stage one, with a report boundary every so many steps."""
        return self._whole_segments(self.total / self.first_stage, every)

    def second_stage_steps(self, transition_step: int, every: int) -> int:
        """Steps of stage two after a transition, with a report boundary every so many steps; 0 if none fits."""
        left = self.total - transition_step * self.first_stage
        return self._whole_segments(left / self.second_stage, every)

    def _whole_segments(self, num_steps: float, every: int) -> int:
        return max(0, math.floor(num_steps / every + _ROUNDING)) * every


class _Stage(Protocol):
    @property
    def report_every_steps(self) -> int: ...


class _SecondStage(_Stage, Protocol):
    @property
    def num_steps(self) -> int | None: ...


class TwoStages(Protocol):
    """What is known of a trial's length; a recipe and a trial's own part of it are such."""

    @property
    def length(self) -> LengthConfig | None:
        """Of the whole trial, if it is fixed."""

    @property
    def first_stage(self) -> _Stage:
        """Where the report boundaries of stage one are."""

    @property
    def second_stage(self) -> _SecondStage:
        """Where those of stage two are, and its length if that is fixed."""


def second_stage_steps(trial: TwoStages, transition_step: int) -> int:
    """Steps of stage two of a trial that leaves stage one at a step; 0 if nothing is left for it."""
    if trial.second_stage.num_steps is not None:
        return trial.second_stage.num_steps
    assert trial.length is not None, "a recipe without a length has a fixed stage two"
    return trial.length.second_stage_steps(transition_step, trial.second_stage.report_every_steps)


def first_stage_steps(trial: TwoStages) -> int | None:
    """Steps after which a trial ends that never leaves stage one; None if nothing ends it there."""
    if trial.length is None or trial.second_stage.num_steps is not None:
        return None
    return trial.length.first_stage_steps(trial.first_stage.report_every_steps)


def cost(trial: TwoStages, global_step: int, second_stage_step: int) -> float:
    """Relative cost of a trial up to a boundary: its steps, weighted by `length` where that gives costs.

    Args:
        trial: Whose length is known.
        global_step: The boundary.
        second_stage_step: Steps of stage two up to there.
    """
    weights = trial.length or LengthConfig(steps=1)
    return (global_step - second_stage_step) * weights.first_stage + second_stage_step * weights.second_stage
