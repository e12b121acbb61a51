"""Dispatchers with groups, and trials' segments, for tests."""

from __future__ import annotations

from latentsync_ray.config.recipe import FIRST_STAGE, SECOND_STAGE
from latentsync_ray.core.segment import Segment
from latentsync_ray.engine.dispatcher import Dispatcher
from latentsync_ray.engine.orders import Order


def lineage(num_first: int, branches: str = "", first_workers: int = 1, second_workers: int = 1) -> list[Segment]:
    """A trial's segments: stage one of so many, then one of stage two for each letter, under settings so called."""
    segments: list[Segment] = []
    for number in range(num_first + len(branches)):
        in_first = number < num_first
        segments.append(
            Segment(
                parent=segments[-1].key if segments else "root",
                stage=FIRST_STAGE if in_first else SECOND_STAGE,
                config={
                    "num_workers": first_workers if in_first else second_workers,
                    "name": branches[number - num_first :][:1] if not in_first else "",
                },
                start_step=number,
                stage_start_step=0 if in_first else num_first,
                end_step=number + 1,
            )
        )
    return segments


def dispatcher(max_groups: int = 2, num_groups: int = 1, keep_from: int = 0, idle: float = 60.0) -> Dispatcher:
    made = Dispatcher(max_groups, keep_from, idle)
    made.add_root("root")
    for _ in range(num_groups):
        start(made)
    return made


def start(made: Dispatcher, num_workers: int = 1, now: float = -100.0) -> str:
    """Has a group come up. Returns its name."""
    name = made.assignment.start_group(num_workers).group
    made.assignment.up(name, now)
    return name


def train(made: Dispatcher, segment: Segment, group: str = "group-1", now: float = 0.0) -> Order:
    """Has a group train a segment that is its next order."""
    order = made.assignment.assign(group, now)
    assert order is not None
    assert order.segment == segment
    return made.finish(group, now)
