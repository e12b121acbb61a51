"""The engine's decisions, as plain data and pure logic: what to train next, where, and what to keep.

Knows no Ray and no clock, so that plans and simulations can drive the very logic that runs. Nothing that happens for
one segment looks at all trials, orders or ancestors, so that a search may have tens of thousands of each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from latentsync_ray.core.segment import Segment
from latentsync_ray.engine.assignment import Assignment
from latentsync_ray.engine.decisions import Decision
from latentsync_ray.engine.messages import Branch
from latentsync_ray.engine.orders import Order, OrderBook
from latentsync_ray.engine.retention import Retention
from latentsync_ray.engine.states import KnownStates


class Dispatcher:
    """Has assignment and retention learn of what concerns both.

    Args:
        max_groups: Most groups at once.
        keep_first_stage_from: Stage-one states from this global_step on are kept, since a branch may start there.
        idle_seconds: A group that has been free for this long is stopped.
    """

    def __init__(self, max_groups: int, keep_first_stage_from: int = 0, idle_seconds: float = math.inf):
        self.states = KnownStates(keep_first_stage_from)
        """What is finished, and which states can be restored."""
        self.book = OrderBook(self.states)
        """What trials wait for."""
        self.assignment = Assignment(self.book, max_groups, idle_seconds)
        """Who trains what."""
        self.retention = Retention(self.states, self.book)
        """Which states are needed."""

    # States

    def add_root(self, root: str) -> None:
        """Makes a root known: the state before the first step needs nothing stored."""
        if root not in self.states.kept:
            self.states.add_root(root)
            self.book.requeue_following(root)

    def add_done(self, segment: Segment, state_kept: bool) -> None:
        """Makes a finished segment known."""
        self.states.add_done(segment, state_kept)
        if state_kept:
            self.book.requeue_following(segment.key)

    def drop(self, keys: Iterable[str]) -> None:
        """The states of these keys are about to be deleted, or are gone."""
        for key in keys:
            self.states.drop(key)
            self.book.requeue_following(key)

    # Trials

    def ask(self, segment: Segment, trial: str, branch: Branch | None = None) -> None:
        """A trial wants a segment; ancestors whose states are gone are ordered with it.

        Args:
            segment: Which.
            trial: Who.
            branch: Where it may leave stage one, if it is known.
        """
        self.assignment.thinks_no_more(trial)
        self.assignment.expect(trial, branch)
        self.book.add(segment, trial)

    def give(self, segment: Segment, trial: str) -> list[str]:
        """A trial is given a finished segment. Returns keys whose states nobody needs any more."""
        unneeded = self.retention.move(trial, segment)
        self.assignment.thinks(trial, segment.key)
        return unneeded

    def end_trial(self, trial: str, last: str | None = None) -> list[str]:
        """A trial has ended; what only it has waited for and nobody has begun is withdrawn.

        Args:
            trial: Which.
            last: Key of the segment where it was, which it may not have asked for.

        Returns:
            Keys whose states nobody needs any more.
        """
        unneeded = self.retention.end_trial(trial, last)
        self.assignment.thinks_no_more(trial)
        self.assignment.expect(trial, None)
        self.book.leave(trial)
        return unneeded

    def give_up(self, order: Order, error: str) -> list[Order]:
        """An order that nobody has begun will not be trained. Returns it with all that waits for its state."""
        order.errors.append(error)
        self.book.withdraw(order)
        return self.book.give_up(order)

    def give_up_waiting(self, error: str) -> list[Order]:
        """Nothing that nobody has begun will be trained. Returns these orders."""
        given_up: list[Order] = []
        for order in list(self.book.orders.values()):
            if not order.begun and order.segment.key in self.book.orders:
                given_up += self.give_up(order, error)
        return given_up

    # Groups

    def decide(
        self, now: float, may_begin: bool = True, check_idle: bool = False, near_steps: float = 0.0
    ) -> list[Decision]:
        """What follows from all that has happened; see `Assignment.decide`."""
        return self.assignment.decide(now, may_begin, check_idle, near_steps)

    def finish(self, name: str, now: float) -> Order:
        """The group has trained its order and published the state."""
        order = self.assignment.order_of(name)
        assert order is not None
        self.assignment.release(name, order.segment.key, now)
        self.book.withdraw(order)
        self.add_done(order.segment, state_kept=True)
        return order

    def relieve(self, name: str, now: float) -> None:
        """The group's order is finished, as `add_done` has told, though the group has not said so."""
        self.book.withdraw(self.assignment.release(name, None, now))

    def fail(self, name: str, error: str, now: float, lost: bool = False) -> list[Order]:
        """The group could not train its order; the order goes back into the queue, or is given up.

        Args:
            name: The group.
            error: One line.
            now: Seconds on the caller's clock.
            lost: Whether a process was lost, rather than that the training has an error.

        Returns:
            The orders that are given up now, with their errors: those who wait are to be told.
        """
        order = self.assignment.order_of(name)
        if order is None:
            return []
        order.errors.append(error)
        order.losses += lost
        self.take_back(name, now)
        return self.book.give_up(order) if order.waiters and order.hopeless else []

    def take_back(self, name: str, now: float) -> None:
        """The group does not train its order after all."""
        self.book.put_back(self.assignment.release(name, None, now))

    def state_lost(self, name: str, parent: str, error: str, now: float) -> list[Order]:
        """The stored state that the group was to start from is damaged or gone: it will be trained again.

        Returns:
            The orders that are given up now, because that has happened too often.
        """
        self.drop([parent])
        given_up = self.fail(name, error, now)
        for other in list(self.book.orders.values()):
            for trial in list(other.waiters):
                self.ask(other.segment, trial)
        return given_up

    def end_group(self, name: str, error: str, now: float) -> list[Order]:
        """A group has ended; its unfinished order counts a loss. Returns the orders that are given up now."""
        given_up = self.fail(name, error, now, lost=True)
        self.assignment.remove_group(name)
        return given_up
