"""Segments and records for tests that need some and do not care which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from latentsync_ray.core.record import Speed, Timings, Trained
from latentsync_ray.core.segment import Metrics, Segment


def make_segment(number: int = 0, end_step: int = 4) -> Segment:
    """A segment of stage one; each number gives another key."""
    return Segment(f"{number:064x}", "first_stage", {"num_workers": 1}, 0, 0, end_step)


def make_trained(
    segment: Segment,
    metrics: Metrics | None = None,
    steps: Sequence[Metrics] = (),
    environment: Mapping[str, str] | None = None,
    weights_sha256: str = "",
) -> Trained:
    """What a worker says of a segment."""
    return Trained(
        segment, metrics or {}, list(steps), None, weights_sha256, environment or {}, Timings(0.0, 0.0, 0.0), Speed()
    )
