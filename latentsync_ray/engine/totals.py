"""What was trained in this call of the search, and how fast."""

from __future__ import annotations

from dataclasses import asdict

from latentsync_ray.core.record import Speed, Timings
from latentsync_ray.core.segment import Segment
from latentsync_ray.engine.messages import StageTotals


class Totals:
    """Sums by stage."""

    def __init__(self) -> None:
        self.by_stage: dict[str, StageTotals] = {}
        self.newest_seconds_per_step: float | None = None
        """Of the segment that was trained last."""

    def step_seconds(self, stage: str) -> float | None:
        """Mean seconds of a step of a stage; None if none was trained."""
        trained = self.by_stage.get(stage)
        return None if trained is None else trained.seconds_per_step

    def add(self, segment: Segment, timings: Timings, speed: Speed) -> None:
        """Adds a trained segment."""
        one = StageTotals(num_steps=segment.num_steps, **asdict(timings), newest_speed=speed)
        self.by_stage[segment.stage] = self.by_stage.get(segment.stage, StageTotals()) + one
        self.newest_seconds_per_step = one.seconds_per_step
