"""What becomes of orders whose training has failed."""

from __future__ import annotations

from collections.abc import Callable

from latentsync_ray.engine.answers import Answers
from latentsync_ray.engine.dispatcher import Dispatcher
from latentsync_ray.engine.known import KnownSegments
from latentsync_ray.engine.messages import Failed, Fault, OrderFailure
from latentsync_ray.engine.nodes import Nodes
from latentsync_ray.engine.notices import Notices
from latentsync_ray.engine.orders import Order
from latentsync_ray.engine.pool import Run, WorkerPool
from latentsync_ray.engine.reservations import Reservations
from latentsync_ray.store import DamagedEntryError, StorageError

MAX_ENGINE_LOSSES = 3
"""This often in a row, with no segment finished in between, the engine may be lost before those who ask are told."""


class Recovery:
    """Has orders trained again, or tells those who wait that they will not come.

    Args:
        dispatcher: Who trains what.
        known: What is trained.
        answers: Who waits for what.
        pool: The groups.
        nodes: Where processes fail.
        reservations: What lost groups may leave behind.
        notices: For the user.
        clock: Seconds.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        known: KnownSegments,
        answers: Answers,
        pool: WorkerPool,
        nodes: Nodes,
        reservations: Reservations,
        notices: Notices,
        clock: Callable[[], float],
    ):
        self._nodes, self._reservations = nodes, reservations
        self._dispatcher, self._known, self._answers = dispatcher, known, answers
        self._pool, self._notices, self._clock = pool, notices, clock
        self._reports: dict[str, dict[int, OrderFailure]] = {}
        """Group -> rank -> error that may follow from another rank's end."""

    async def order_failed(self, group: str, order: Order, failure: OrderFailure) -> None:
        """A rank could not train its group's order.

        A rank that was killed says nothing, but ends the collective operations of the others. So such an error is the
        order's own only if every rank reports one; otherwise a worker was lost, as its group's restart tells.
        """
        if failure.may_be_a_peers:
            self._dispatcher.assignment.restarts(group)
            reports = self._reports.setdefault(group, {})
            reports[failure.rank] = failure
            if len(reports) < order.segment.num_workers:
                return
            failure = reports[min(reports)]
        self._reports.pop(group, None)
        order.diverged = failure.fault is Fault.DIVERGED
        if failure.restarting:
            self._dispatcher.assignment.restarts(group)
        if failure.lost_parent is None:
            self._fail(group, order, failure.error)
            if failure.restarting and not failure.explained and self._nodes.failed(failure.node_id, failure.error):
                self._dispatcher.assignment.stop_group(group)  # rather than a new process at the same place
                self._pool.runs[group].wake()
        else:
            await self._parent_lost(group, order, failure.lost_parent, failure.error)
        if failure.fault is Fault.STORAGE:
            self.break_down(failure.error)

    def engine_lost(self, num_losses: int) -> None:
        """The engine was lost, so many times with no segment finished in between; its groups have ended with it."""
        self._reservations.watch()
        if num_losses > MAX_ENGINE_LOSSES:
            lost = f"the engine was lost {num_losses} times in a row"
            self._answers.broken = Failed(f"{lost}; its log in Ray's folder may say why")

    async def workers_replaced(self, group: str) -> None:
        """Ray Train has replaced the workers of a group, which may have had an order."""
        reports, order = self._reports.pop(group, {}), self._dispatcher.assignment.order_of(group)
        if order is None or await self._is_settled(group, order):
            return
        error = "a worker was lost"
        for rank, failure in sorted(reports.items())[:1]:
            error += f" (rank {rank} says: {failure.error})"
        self._fail(group, order, error, lost=True)

    def node_taken_away(self, group: str, order: Order) -> None:
        """A group has to leave its node; what it has trained of its order is stored, and another one goes on."""
        place = f"{order.segment.stage} to step {order.segment.end_step}"
        self._notices.add(f"{group}: {place}: a node is taken away; another group goes on")
        self._dispatcher.take_back(group, self._clock())
        self._pool.finish_order(group)

    async def group_ended(self, run: Run, error: str | None) -> None:
        """A group has ended: its order goes back, or is given up.

        Args:
            run: The group.
            error: What ended it too early, one line, or None.
        """
        self._reports.pop(run.name, None)
        if error is not None and run.joined_at is None:
            self._reservations.watch()
        if error is not None:
            self._notices.add(f"{run.name}: its Ray Train run ended: {error}")
        order = self._dispatcher.assignment.order_of(run.name)
        if order is not None:
            await self._is_settled(run.name, order)
        given_up = self._dispatcher.end_group(run.name, error or "the worker group ended", self._clock())
        self._pool.remove(run)
        self._answers.give_up(given_up)
        if self._pool.cannot_start():
            self.give_up_waiting(f"worker groups cannot be started: {error}")

    def give_up_waiting(self, error: str) -> None:
        """Tells all whose segments nobody trains now that these will not come."""
        self._answers.give_up(self._dispatcher.give_up_waiting(error))

    def break_down(self, error: str) -> None:
        """Nobody can be helped any more."""
        self._answers.broken = Failed(error)
        self.give_up_waiting(error)

    def _fail(self, group: str, order: Order, error: str, lost: bool = False) -> None:
        segment, waiting = order.segment, sorted(order.waiters)
        who = f" for {waiting[0]}" + (f" and {len(waiting) - 1} more" if waiting[1:] else "") if waiting else ""
        self._notices.add_once(f"{group}: {segment.stage} to step {segment.end_step}{who}: {error}")
        self._answers.give_up(self._dispatcher.fail(group, error, self._clock(), lost))
        self._pool.finish_order(group)

    async def _parent_lost(self, group: str, order: Order, parent: str, error: str) -> None:
        """Has a lost state trained again, unless what was to follow from it is there by now.

        Another search drops a state when its trials have passed it, so it has the segment that follows.
        """
        if await self._is_settled(group, order):
            self._dispatcher.drop([parent])
        else:
            self._notices.add(f"{error}; it will be trained again")
            self._answers.give_up(self._dispatcher.state_lost(group, parent, error, self._clock()))
            self._pool.finish_order(group)
        await self._order_again()

    async def _is_settled(self, group: str, order: Order) -> bool:
        """Whether nothing is left to do for a group's order: it is in the store, and those who wait are answered.

        Workers may be lost between publishing a segment and telling so, and another search may have it too.
        """
        key = order.segment.key
        known_before = key in self._known.results
        try:
            result = await self._known.find(key)
        except StorageError as unreadable:
            self._fail(group, order, str(unreadable))
            self.break_down(str(unreadable))
            return True
        if self._dispatcher.assignment.order_of(group) is not order:
            return True  # it has ended meanwhile
        if result is None or (known_before and key not in self._dispatcher.states.kept):
            return False  # an order for a state that was dropped
        self._dispatcher.relieve(group, self._clock())
        self._answers.give(key, result)
        self._pool.finish_order(group)
        return True

    async def _order_again(self) -> None:
        """Orders what trials wait for once more, with the ancestors that have to be trained again for it."""
        for order in list(self._dispatcher.book.orders.values()):
            error = None
            try:
                await self._known.learn_ancestors(order.segment)
            except StorageError as unreadable:
                self.break_down(str(unreadable))
                return
            except DamagedEntryError as damage:
                error = str(damage)
            if self._dispatcher.book.orders.get(order.segment.key) is not order:
                continue  # it has ended meanwhile
            if error is None:
                for trial in list(order.waiters):
                    self._dispatcher.ask(order.segment, trial)
            elif not order.begun:
                self._answers.give_up(self._dispatcher.give_up(order, error))
