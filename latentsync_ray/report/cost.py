"""What a trial has cost up to a report boundary."""

from __future__ import annotations

from dataclasses import dataclass

from latentsync_ray.report.trials import Boundary


@dataclass(frozen=True)
class StepCosts:
    """What a step of each stage costs; with the defaults a cost is a number of steps."""

    first_stage: float = 1.0
    second_stage: float = 1.0

    @property
    def label(self) -> str:
        """What an axis of costs says."""
        return "steps" if self == StepCosts() else "cost, in steps of stage one"

    def at(self, boundary: Boundary) -> float:
        """The cost of a lineage up to a boundary."""
        second = boundary.second_stage_step
        return self.first_stage * (boundary.global_step - second) + self.second_stage * second
