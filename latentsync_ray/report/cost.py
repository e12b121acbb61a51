"""What a trial has cost up to a report boundary."""

from __future__ import annotations

from collections.abc import Iterable

from latentsync_ray.report.trials import Boundary


def cost_at(boundary: Boundary) -> float:
    """The relative cost of a lineage up to a boundary; its steps, where no costs are known."""
    return boundary.cost or boundary.global_step


def cost_label(boundaries: Iterable[Boundary]) -> str:
    """What an axis of costs says."""
    return "steps" if all(cost_at(one) == one.global_step for one in boundaries) else "relative cost"
