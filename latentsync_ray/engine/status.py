"""What is going on in the engine."""

from __future__ import annotations

from latentsync_ray.engine.dispatcher import Dispatcher
from latentsync_ray.engine.messages import EngineStatus, InTraining
from latentsync_ray.engine.notices import Notices
from latentsync_ray.engine.pool import WorkerPool
from latentsync_ray.engine.spending import Spending
from latentsync_ray.engine.totals import Totals


def status_of(
    dispatcher: Dispatcher, pool: WorkerPool, totals: Totals, spending: Spending, notices: Notices
) -> EngineStatus:
    """The state of the engine's parts at this moment, for the live view and the summary."""
    training = tuple(
        InTraining(group.name, group.order.segment, len(group.order.waiters))
        for group in dispatcher.assignment.groups.values()
        if group.order is not None
    )
    return EngineStatus(
        training=training,
        num_groups=len(pool.runs),
        num_starting=pool.num_starting(),
        startup_seconds=pool.startup_seconds,
        num_queued=len(dispatcher.book.orders) - len(training),
        num_steps_stored=dispatcher.states.num_steps,
        trained=dict(totals.by_stage),
        worker_seconds=pool.seconds_held(),
        notices=tuple(notices.lines),
        stopped_by=spending.stopped_by(bool(training)),
    )
