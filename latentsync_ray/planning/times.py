"""What steps of a search take: from the records of a store, or from what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import median

from latentsync_ray.config.plain import Plain
from latentsync_ray.core.forecast import StageTimes
from latentsync_ray.core.record import Record
from latentsync_ray.core.segment import Segment


def stored_times(segments: Iterable[Segment], records: Iterable[Record]) -> dict[str, StageTimes]:
    """What stages took in a store, medians over records of steps of the same kind.

    Args:
        segments: Of the search, of which each stage needs one.
        records: Of any searches; the more, the longer it takes.

    Returns:
        By stage; a stage of which no record tells is left out.
    """
    wanted = {_kind(segment): segment.stage for segment in segments}
    found: dict[str, list[Record]] = {}
    for record in records:
        stage = wanted.get(_kind(record.segment))
        if stage is not None:
            found.setdefault(stage, []).append(record)
    return {stage: _medians(of_stage) for stage, of_stage in found.items()}


def _medians(records: list[Record]) -> StageTimes:
    return StageTimes(
        train_seconds=median(r.timings.train_seconds / r.segment.num_steps for r in records),
        boundary_seconds=median(
            t.validate_seconds + t.publish_seconds + t.restore_seconds for t in (r.timings for r in records)
        ),
        state_bytes=round(median(r.state.num_bytes for r in records)),
    )


def _kind(segment: Segment) -> str:
    """What the time of a step depends on: sizes, names and switches, but no rates or weights, which are fractions."""
    return repr((segment.stage, sorted(_sizes(segment.config))))


def _sizes(values: Mapping[str, Plain], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _sizes(value, f"{prefix}{name}.")
        elif not isinstance(value, float):
            yield f"{prefix}{name}", repr(value)
