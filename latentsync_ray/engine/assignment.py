"""Who trains what: the worker groups as far as decisions go, and when they start, linger and stop."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from latentsync_ray.engine.decisions import (
    LINGER_SECONDS,
    YIELD_SECONDS,
    DecideAgain,
    Decision,
    StartGroup,
    StopGroup,
    TrainOrder,
)
from latentsync_ray.engine.messages import Branch
from latentsync_ray.engine.orders import Order, OrderBook


class Phase(Enum):
    """Where in its life a group is."""

    STARTING = "starting"
    UP = "up"
    RESTARTING = "restarting"
    """Its workers have reported an error and are replaced by new ones."""
    STOPPING = "stopping"
    """It gets no more orders."""


@dataclass(slots=True)
class Group:
    """A worker group, as far as decisions go."""

    name: str
    num_workers: int
    phase: Phase = Phase.STARTING
    order: Order | None = None
    """What it trains now."""
    held: str | None = None
    """Key of the state that its workers hold in memory."""
    free_since: float = -math.inf
    """When it last came up or became free, in seconds of the caller's clock."""


class Assignment:
    """The worker groups and their orders.

    Args:
        book: The orders.
        max_groups: Most groups at once.
        idle_seconds: A group that has been free for this long is stopped.
    """

    def __init__(self, book: OrderBook, max_groups: int, idle_seconds: float = math.inf):
        self.max_groups = max_groups
        self.groups: dict[str, Group] = {}
        """By name; those that stop are among them until they have ended."""
        self._book, self._idle_seconds = book, idle_seconds
        self._free: dict[str, Group] = {}
        """The groups without an order."""
        self._staying: Counter[int] = Counter()
        """World size -> number of groups that do not stop."""
        self._num_started = 0
        self._thinks_after: dict[str, str] = {}
        """Trial that has its answer and has not asked again -> key of the answer."""
        self._num_thinking: defaultdict[str, int] = defaultdict(int)
        """Key -> number of trials that think after it."""
        self._branches: dict[str, Branch] = {}
        """Trial in stage one -> where it may leave."""

    # The life of a group

    def start_group(self, num_workers: int) -> StartGroup:
        """Adds a group that starts."""
        self._num_started += 1
        name = f"group-{self._num_started}"
        self.groups[name] = self._free[name] = Group(name, num_workers)
        self._staying[num_workers] += 1
        return StartGroup(name, num_workers)

    def start_all(self, num_workers: int) -> list[StartGroup]:
        """Adds all groups for which there is room."""
        return [self.start_group(num_workers) for _ in range(self.max_groups - len(self.groups))]

    def up(self, name: str, now: float) -> None:
        """The workers of a group are ready, the first ones or new ones in their place, and hold no state."""
        group = self.groups[name]
        if group.phase is not Phase.STOPPING:
            group.phase = Phase.UP
        group.held, group.free_since = None, now

    def restarts(self, name: str) -> None:
        """The workers of a group are about to be replaced."""
        if self.groups[name].phase is not Phase.STOPPING:
            self.groups[name].phase = Phase.RESTARTING

    def stop_group(self, name: str) -> StopGroup:
        """Has a group get no more orders."""
        self._leave(self.groups[name])
        return StopGroup(name)

    def remove_group(self, name: str) -> None:
        """A group has ended; its order is settled before."""
        self._leave(self._free.pop(name))
        del self.groups[name]

    # Orders

    def assign(self, name: str, now: float) -> Order | None:
        """Gives a free group its next order, or None if there is none for it yet.

        Args:
            name: The group.
            now: Seconds on the clock that `release` was told.
        """
        group = self._free[name]
        best = self._best(group)
        if best is None:
            return None
        if (
            group.held is not None
            and best.segment.parent != group.held
            and now - group.free_since < LINGER_SECONDS
            and self._num_thinking.get(group.held, 0) > len(best.waiters)
        ):
            return None
        group.order = best
        del self._free[name]
        self._book.begin(best)
        return best

    def release(self, name: str, held: str | None, now: float) -> Order:
        """A group has no order any more.

        Args:
            name: The group.
            held: Key of the state that its workers hold now.
            now: Seconds on the caller's clock.

        Returns:
            The order that it had, which is still in the book.
        """
        group = self.groups[name]
        order = group.order
        assert order is not None
        group.order, group.held, group.free_since = None, held, now
        self._free[name] = group
        return order

    def order_of(self, name: str) -> Order | None:
        """What a group trains now."""
        group = self.groups.get(name)
        return None if group is None else group.order

    # Trials that think

    def thinks(self, trial: str, key: str) -> None:
        """A trial has its answer; what it asks next is likely to follow from it."""
        self.thinks_no_more(trial)
        self._thinks_after[trial] = key
        self._num_thinking[key] += 1

    def thinks_no_more(self, trial: str) -> None:
        """A trial has asked or left."""
        key = self._thinks_after.pop(trial, None)
        if key is not None:
            self._num_thinking[key] -= 1
            if not self._num_thinking[key]:
                del self._num_thinking[key]

    def expect(self, trial: str, branch: Branch | None) -> None:
        """A trial may leave stage one there; None if it has, or is not known to."""
        if branch is None:
            self._branches.pop(trial, None)
        else:
            self._branches[trial] = branch

    # Decisions

    def decide(
        self, now: float, may_begin: bool = True, check_idle: bool = False, near_steps: float = 0.0
    ) -> list[Decision]:
        """What follows from all that has happened, in the sequence in which it is to be carried out.

        Args:
            now: Seconds on the caller's clock.
            may_begin: Whether orders may begin and groups start; otherwise free groups are stopped at once.
            check_idle: Whether to stop groups that have been free for too long.
            near_steps: Groups for which a branch opens in so many steps are not.
        """
        wanted = self._book.ready.sizes()
        if not wanted and not check_idle:
            return []
        decisions: list[Decision] = []
        if wanted and may_begin:
            if self._free:
                self._hand_out(now, decisions)
            if len(self.groups) < self.max_groups:
                decisions += [self.start_group(size) for size in self._sizes_to_start()]
        if check_idle:
            decisions += self._stop_idle(now, may_begin, near_steps)
        if wanted and self._free:
            in_the_way = self._in_the_way()
            if in_the_way is not None:
                decisions.append(self.stop_group(in_the_way.name))
            if may_begin and any(group.phase is Phase.UP for group in self._free.values()):
                decisions.append(DecideAgain(LINGER_SECONDS))
        return decisions

    def _hand_out(self, now: float, decisions: list[Decision]) -> None:
        for name in sorted(self._free):
            if self._free[name].phase is Phase.UP:
                order = self.assign(name, now)
                if order is not None:
                    decisions.append(TrainOrder(name, order))

    def _best(self, group: Group) -> Order | None:
        """The order with the most waiters; among equals one that follows the state that the group holds."""
        ready, orders = self._book.ready, self._book.orders
        if group.num_workers not in ready.sizes():
            return None
        # A free group takes what follows the state that it holds by itself, so the others leave it alone.
        theirs = {other.held for other in self._free.values() if other.num_workers == group.num_workers}
        theirs.discard(group.held)
        in_sequence = self._book.in_sequence(group.num_workers)
        best = next((order for order in in_sequence if order.segment.parent not in theirs), None)
        at_hand = ready.first_after(group.held or "", group.num_workers)
        if best is not None and at_hand is not None and len(orders[at_hand].waiters) == len(best.waiters):
            return orders[at_hand]
        return best

    def _sizes_to_start(self) -> list[int]:
        """World sizes of the groups that distinct waiting work asks for, within the maximum."""
        room = self.max_groups - len(self.groups)
        free = Counter(group.num_workers for group in self._free.values())
        wanted: list[int] = []
        for order in self._book.in_sequence():
            size = order.segment.num_workers
            if free[size] > 0:
                free[size] -= 1
            else:
                wanted.append(size)
                if len(wanted) == room:
                    break
        return wanted

    def _stop_idle(self, now: float, may_begin: bool, near_steps: float) -> Iterator[StopGroup]:
        wanted = self._book.ready.sizes()
        idle: list[Group] = []
        for group in self._free.values():
            if group.phase in (Phase.UP, Phase.RESTARTING):
                yields = bool(wanted) and group.num_workers not in wanted
                if not may_begin or (yields and now >= group.free_since + min(self._idle_seconds, YIELD_SECONDS)):
                    yield self.stop_group(group.name)
                elif now >= group.free_since + self._idle_seconds:
                    idle.append(group)
        awaited = self._needed_soon(near_steps) if idle else Counter()
        for group in idle:
            if awaited[group.num_workers] > 0:
                awaited[group.num_workers] -= 1
            else:
                yield self.stop_group(group.name)

    def _needed_soon(self, near_steps: float) -> Counter[int]:
        """World size -> groups beside those that train now for which branches open in so many steps.

        Trials that leave stage one part there, and each needs a group; those that stay go on in the trunk's own.
        """
        needed: Counter[int] = Counter()
        for group in self.groups.values():
            if group.order is None:
                continue
            segment, waiters = group.order.segment, group.order.waiters
            branches = [self._branches[trial] for trial in waiters if trial in self._branches]
            leaving = [b for b in branches if max(b.step, segment.end_step) - segment.start_step <= near_steps]
            needed.update(branch.num_workers for branch in leaving)
            if len(leaving) == len(waiters):
                needed[group.num_workers] -= 1  # the trunk's own is free for one of them
        return needed

    def _in_the_way(self) -> Group | None:
        """A free group without work of its size, where another size is wanted and there is no room for it."""
        wanted = self._book.ready.sizes()
        if self._staying.total() < self.max_groups or wanted <= self._staying.keys():
            return None
        staying = (group for group in self.groups.values() if group.phase is not Phase.STOPPING)
        return next((group for group in staying if group.order is None and group.num_workers not in wanted), None)

    def _leave(self, group: Group) -> None:
        """The group makes room, now or as soon as it has ended."""
        if group.phase is not Phase.STOPPING:
            group.phase = Phase.STOPPING
            self._staying[group.num_workers] -= 1
            if not self._staying[group.num_workers]:
                del self._staying[group.num_workers]
