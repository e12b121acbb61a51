"""What the dispatcher decides about worker groups: values that the engine and the simulation carry out."""

from __future__ import annotations

from dataclasses import dataclass

from latentsync_ray.engine.orders import Order

LINGER_SECONDS = 0.5
"""How long a group stays free for the trials whose segment it has just finished: they are likely to continue from the
state that it holds, and the trunk would otherwise lose its turn at every boundary."""
YIELD_SECONDS = 2.0
"""How long a free group is kept while only work of other sizes waits, which may have no room beside it."""


@dataclass(frozen=True, slots=True)
class TrainOrder:
    """A free group trains an order, which the dispatcher has noted."""

    group: str
    """Name of the group."""
    order: Order
    """What it trains."""


@dataclass(frozen=True, slots=True)
class StartGroup:
    """A new group starts, which the dispatcher has noted."""

    group: str
    """Name of the group."""
    num_workers: int
    """How many processes it has."""


@dataclass(frozen=True, slots=True)
class StopGroup:
    """A group ends. It gets no more orders; `Dispatcher.end_group` says when it has ended."""

    group: str
    """Name of the group."""


@dataclass(frozen=True, slots=True)
class DecideAgain:
    """A group stays free for a moment; the next decision is due when that is over."""

    seconds: float
    """From now."""


Decision = TrainOrder | StartGroup | StopGroup | DecideAgain


def near_steps(idle_seconds: float, startup_seconds: float | None, step_seconds: float | None) -> float:
    """Steps in the time for which a group without work is worth keeping.

    That is as long as it may be idle anyway, and as long as another one would take to start.

    Args:
        idle_seconds: How long a group may be idle.
        startup_seconds: How long a group takes to start; None if it is not known.
        step_seconds: Seconds of a step of stage one; None if it is not known.
    """
    if startup_seconds is None or step_seconds is None:
        return 0.0
    return (idle_seconds + startup_seconds) / step_seconds
