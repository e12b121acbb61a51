"""The segments that trials wait for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from latentsync_ray.core.segment import Segment
from latentsync_ray.engine.ready import ReadyQueue
from latentsync_ray.engine.states import KnownStates

MAX_FAILURES = 2
"""After this many errors in one key, all who wait for it get the last one."""

MAX_LOSSES = 5
"""The same for processes that were lost while they trained one key: machines go away for reasons of their own, but a
segment that needs too much memory loses its process every time."""


@dataclass(slots=True)
class Order:
    """A segment that somebody waits for."""

    segment: Segment
    number: int
    """Order of arrival."""
    waiters: set[str] = field(default_factory=set)
    """Trials that wait for it or for a descendant of it."""
    begun: bool = False
    """Whether a group trains it now."""
    errors: list[str] = field(default_factory=list)
    """What has gone wrong."""
    losses: int = 0
    """How many of the errors were lost processes."""
    diverged: bool = False
    """Whether the last error was numbers that are not finite."""

    @property
    def hopeless(self) -> bool:
        """Whether it is not tried again."""
        return self.losses >= MAX_LOSSES or len(self.errors) - self.losses >= MAX_FAILURES


class OrderBook:
    """All orders, and in which sequence they can be trained.

    Args:
        states: Where orders can start from.
    """

    def __init__(self, states: KnownStates):
        self.orders: dict[str, Order] = {}
        """By key."""
        self.ready = ReadyQueue()
        """Keys of the orders that could start now."""
        self._states = states
        self._num_arrivals = 0
        self._following: defaultdict[str, dict[str, Order]] = defaultdict(dict)
        """Key -> orders for the segments that follow it."""
        self._waits: defaultdict[str, set[str]] = defaultdict(set)
        """Trial -> keys of the orders that it waits for."""

    def add(self, segment: Segment, trial: str) -> None:
        """A trial wants a segment; ancestors whose states are gone are ordered with it."""
        kept, done = self._states.kept, self._states.done
        wanted: Segment | None = segment
        while wanted is not None:
            order = self.orders.get(wanted.key)
            if order is None:
                self._num_arrivals += 1
                order = self.orders[wanted.key] = Order(wanted, self._num_arrivals)
                self._following[wanted.parent][wanted.key] = order
            order.waiters.add(trial)
            self._waits[trial].add(wanted.key)
            self._requeue(order)
            wanted = None if order.begun or wanted.parent in kept else done.get(wanted.parent)

    def missing_ancestor(self, segment: Segment) -> str | None:
        """Key of the nearest ancestor of which the caller has to tell before the segment can be ordered."""
        kept, done, parent = self._states.kept, self._states.done, segment.parent
        while parent not in kept:
            if parent in self.orders:
                return None
            if parent not in done:
                return parent
            parent = done[parent].parent
        return None

    def begin(self, order: Order) -> None:
        """A group trains the order from now on."""
        order.begun = True
        self.ready.remove(order.segment)

    def put_back(self, order: Order) -> None:
        """The group does not train the order after all: it waits again, if it has waiters and hope."""
        order.begun = False
        if order.hopeless or not order.waiters:
            self.withdraw(order)
            return
        for trial in list(order.waiters):
            self.add(order.segment, trial)  # its parent's state may have been lost meanwhile

    def withdraw(self, order: Order) -> None:
        """Takes an order out: it is done, not wanted any more, or given up."""
        segment = order.segment
        del self.orders[segment.key]
        self.ready.remove(segment)
        following = self._following[segment.parent]
        del following[segment.key]
        if not following:
            del self._following[segment.parent]
        for trial in order.waiters:
            self._waits[trial].discard(segment.key)

    def give_up(self, order: Order) -> list[Order]:
        """What fails together with an order that was withdrawn: itself, and all that waits for its state."""
        given_up = [order]
        for waiting in [other for other in self._following.get(order.segment.key, {}).values() if not other.begun]:
            waiting.errors.append(order.errors[-1])
            waiting.diverged = order.diverged
            self.withdraw(waiting)
            given_up += self.give_up(waiting)
        return given_up

    def leave(self, trial: str) -> None:
        """A trial waits for nothing any more; what only it has waited for and nobody has begun is withdrawn."""
        for key in self._waits.pop(trial, ()):
            order = self.orders[key]
            order.waiters.discard(trial)
            if order.waiters or order.begun:
                self._requeue(order)
            else:
                self.withdraw(order)

    def starts_order(self, key: str) -> bool:
        """Whether there is an order for a segment that follows this one."""
        return key in self._following

    def requeue_following(self, key: str) -> None:
        """The state of this key has come or gone, and with it what could start from it."""
        for order in self._following.get(key, {}).values():
            self._requeue(order)

    def in_sequence(self, num_workers: int | None = None) -> Iterator[Order]:
        """Orders that could start now, the one with the most waiters first."""
        return (self.orders[key] for key in self.ready.in_order(num_workers))

    def starting_from(self) -> set[str]:
        """Keys from whose states orders start."""
        return set(self._following)

    def _requeue(self, order: Order) -> None:
        if not order.begun and order.segment.parent in self._states.kept:
            self.ready.put(order.segment, len(order.waiters), order.number)
        else:
            self.ready.remove(order.segment)
