"""What a trial reports to Ray Tune after each step, and the dict in which Ray Tune passes it on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from latentsync_ray.report.trials import Boundary, TrialResult, TrialStatus

TuneResult: TypeAlias = dict[str, object]
"""A report as Ray Tune passes it on, with entries of its own added."""
_METRICS = ("val/", "train/")


@dataclass(frozen=True, slots=True)
class Reported:
    """What a trial has come to in a step."""

    global_step: int
    """The boundary that it has reached, or would have reached if the segment could be trained."""
    second_stage_step: int
    """Steps of stage two up to there."""
    boundary: Boundary | None = None
    """What it has reached; None if the segment was not trained."""
    start_step: int = 0
    """global_step at which the segment begins."""
    cached: bool = False
    """Whether the segment was found or shared, rather than trained for this trial first."""
    error: str = ""
    """Why the trial ends; empty if it does not, or is at its end."""
    diverged: bool = False
    """Whether the error is numbers that are not finite, or an objective that has grown too far."""
    cost: float = 0.0
    """Relative cost of what is behind the trial."""

    @classmethod
    def reached(cls, boundary: Boundary, start_step: int, cached: bool, diverged: str | None = None) -> Reported:
        """A trial has reached a boundary, and ends there with an error if its objective has grown too far."""
        place = boundary.global_step, boundary.second_stage_step
        return cls(*place, boundary, start_step, cached, diverged or "", diverged is not None, boundary.cost)

    @property
    def metrics(self) -> Mapping[str, float]:
        """At the boundary; empty if it was not reached."""
        return self.boundary.metrics if self.boundary else {}

    @property
    def num_steps(self) -> int:
        """Of the segment."""
        return self.global_step - self.start_step

    def time(self, time_attr: str) -> float:
        """`second_stage_step`, `global_step` or `cost`, whichever a scheduler counts."""
        times = {"second_stage_step": self.second_stage_step, "global_step": self.global_step, "cost": self.cost}
        return times[time_attr]

    def to_result(self) -> TuneResult:
        """The entries of Ray Tune's dict, which ends the trial by `done`."""
        reached = self.boundary
        place = {"global_step": self.global_step, "second_stage_step": self.second_stage_step, "cost": self.cost}
        result: TuneResult = {**place}
        if reached is not None:
            # Ray Tune also sets `done` in the result of a trial that its scheduler stops; `at_end` stays ours.
            result |= {**reached.metrics, "stage": reached.stage, "key": reached.key, "parent": reached.parent}
            result |= {"start_step": self.start_step, "cached": self.cached, "at_end": reached.at_end}
        if self.error:
            result |= {"error": self.error, "diverged": self.diverged}
        return {**result, "done": reached is None or reached.at_end or bool(self.error)}

    @classmethod
    def from_result(cls, result: Mapping[str, Any]) -> Reported:
        """What a trial has reported, from Ray Tune's dict, which has nothing of ours before the first report."""
        global_step, second_stage_step = result.get("global_step", 0), result.get("second_stage_step", 0)
        error, diverged = result.get("error", ""), result.get("diverged", False)
        cost = result.get("cost", 0.0)
        if "key" not in result:
            return cls(global_step, second_stage_step, error=error, diverged=diverged, cost=cost)
        boundary = Boundary(
            key=result["key"],
            parent=result["parent"],
            stage=result["stage"],
            global_step=global_step,
            second_stage_step=second_stage_step,
            metrics={name: value for name, value in result.items() if name.startswith(_METRICS)},
            at_end=result["at_end"],
            cost=cost,
        )
        start_step, cached = result["start_step"], result["cached"]
        return cls(global_step, second_stage_step, boundary, start_step, cached, error, diverged, cost)


def with_report(known: TrialResult, reported: Reported, results: tuple[Boundary, ...]) -> TrialResult:
    """What is known of a trial after a report.

    Args:
        known: Before it.
        reported: What the trial reports.
        results: Those of its lineage, up to the boundary that it has reached.
    """
    reached = reported.boundary
    if reached is not None:
        asked = {**known.asked, reached.key: reported.num_steps}
        shared = (*known.shared, reached.key) if reported.cached else known.shared
        known = replace(known, results=results, asked=asked, shared=shared)
    if reported.error:
        status = TrialStatus.DIVERGED if reported.diverged else TrialStatus.FAILED
        known = replace(known, status=status, error=reported.error)
    return known
