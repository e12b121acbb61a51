"""The engine's decisions, as plain data and pure logic: what to train next, where, and what to keep.

Knows no Ray and no clock, so that plans and simulations can drive the very logic that runs. Nothing that happens for
one segment looks at all trials, orders or ancestors, so that a search may have ten thousands of each.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from latentsync_ray.config.recipe import FIRST_STAGE
from latentsync_ray.core.segment import Segment
from latentsync_ray.engine.ready import ReadyQueue

LINGER_SECONDS = 0.5
"""How long a group keeps itself free for the trials whose segment it has just finished: they are likely to go on
from the state that it holds, and the trunk would otherwise lose its turn at every boundary."""
YIELD_SECONDS = 2.0
"""How long a free group is kept while only work of other sizes waits, which may have no room beside it."""

MAX_AHEAD = 32
"""Of so many segments at most is a trial told before it asks for them."""

MAX_FAILURES = 2
"""After so many errors in one key, all who wait for it get the last one."""

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
    group: str | None = None
    """The group that trains it now."""
    errors: list[str] = field(default_factory=list)
    """What went wrong so far."""
    losses: int = 0
    """How many of the errors were lost processes."""
    diverged: bool = False
    """Whether that was numbers that are not finite."""

    @property
    def hopeless(self) -> bool:
        """Whether it is not to be tried again."""
        return self.losses >= MAX_LOSSES or len(self.errors) - self.losses >= MAX_FAILURES


@dataclass(slots=True)
class Group:
    """A worker group, as far as decisions go."""

    name: str
    num_workers: int
    held: str | None = None
    """Key of the state that its workers hold in memory."""
    order: str | None = None
    """Key of the segment that it trains now."""
    free_since: float | None = None
    """When it last became free, in seconds of the caller's clock."""


class Dispatcher:
    """Which segments are wanted, in flight or done, and which group trains what.

    Args:
        max_groups: Most groups at once.
        keep_first_stage_from: Stage-one states from this global_step on are kept, since a branch may start there.
    """

    def __init__(self, max_groups: int, keep_first_stage_from: int = 0):
        self.max_groups = max_groups
        self.keep_first_stage_from = keep_first_stage_from
        self.orders: dict[str, Order] = {}
        self.groups: dict[str, Group] = {}
        self.kept: set[str] = set()
        """Keys whose states can be restored; roots, which need none, are added by `add_root`."""
        self.done: dict[str, Segment] = {}
        self.positions: dict[str, str] = {}
        """Trial -> key of the last segment that it was given."""
        self.destinations: dict[str, str] = {}
        """Trial that was lost and walks its lineage anew -> key of the last segment that it had been given."""
        self.thinking: dict[str, set[str]] = {}
        """Key -> trials that were given it and have not asked again."""
        self.checkpoints: dict[str, str] = {}
        """Trial -> key of the state that its newest checkpoint points to."""
        self.told_ahead: dict[str, list[str]] = {}
        """Trial -> keys of what it was told ahead; until it is heard of again, it may be at any of them."""
        self._arrivals = 0
        # What follows from the above, kept up to date so that nothing has to be searched for.
        self._queue = ReadyQueue()
        self._num_standing: Counter[str] = Counter()
        """Key -> number of trials whose position or checkpoint it is, or that were told of it ahead."""
        self._followers: defaultdict[str, dict[str, Order]] = defaultdict(dict)
        """Key -> orders for the segments that follow it."""
        self._successors: defaultdict[str, list[str]] = defaultdict(list)
        """Key -> keys of the finished segments that follow it."""
        self._waits: defaultdict[str, set[str]] = defaultdict(set)
        """Trial -> keys of the orders that it waits for."""
        self._leaps: dict[str, str] = {}
        """Key -> an ancestor such that none between the two has a state that could be dropped."""

    def add_root(self, root: str) -> None:
        """Makes a root known: the state before the first step needs nothing stored."""
        self._set_kept(root, True)

    def add_done(self, segment: Segment, state_kept: bool) -> None:
        """Makes a finished segment known."""
        if state_kept and segment.key in self.done and segment.key not in self.kept:
            self._leaps.clear()  # a state that was gone is there again
        if segment.key not in self.done:
            self._successors[segment.parent].append(segment.key)
        self.done[segment.key] = segment
        if state_kept:
            self._set_kept(segment.key, True)

    def ask(self, segment: Segment, trial: str) -> None:
        """A trial wants a segment; ancestors whose states are gone are ordered with it."""
        self._settle(trial)
        self._order(segment, trial)

    def _order(self, segment: Segment, trial: str) -> None:
        wanted: Segment | None = segment
        while wanted is not None:
            order = self.orders.get(wanted.key)
            if order is None:
                self._arrivals += 1
                order = self.orders[wanted.key] = Order(wanted, self._arrivals)
                self._followers[wanted.parent][wanted.key] = order
            order.waiters.add(trial)
            self._waits[trial].add(wanted.key)
            self._requeue(order)
            wanted = None if order.group or wanted.parent in self.kept else self.done.get(wanted.parent)

    def missing_ancestor(self, segment: Segment) -> str | None:
        """Key of the nearest ancestor about which the caller has to tell (`add_done`) before it can be ordered."""
        parent = segment.parent
        while parent not in self.kept:
            if parent in self.orders:
                return None
            if parent not in self.done:
                return parent
            parent = self.done[parent].parent
        return None

    def give(self, segment: Segment, trial: str) -> list[str]:
        """A trial is given a finished segment. Returns keys whose states nobody needs any more."""
        self._settle(trial)
        passed = {self._arrive(segment, trial)}
        passed.update(self._droppable_ancestors(segment))  # some may have had to be trained again
        passed.update(self._release(trial))
        self._move(trial, segment.key)
        self.thinking.setdefault(segment.key, set()).add(trial)
        return sorted(key for key in passed if self.unneeded(key))

    def tell_ahead(self, trial: str) -> list[str]:
        """Keys of the finished segments that come next, as far as only one way has been taken from where a trial is.

        The trial need not ask for them; their states are kept for it until it is heard of again.
        """
        ahead: list[str] = []
        key = self.positions[trial]
        while len(ahead) < MAX_AHEAD and len(self._successors.get(key, ())) == 1:
            (key,) = self._successors[key]
            ahead.append(key)
            self._num_standing[key] += 1
        self.told_ahead[trial] = ahead
        return ahead

    def hold(self, trial: str, key: str) -> list[str]:
        """A trial's checkpoint points to a state, from which a clone may start. Returns keys no longer needed."""
        before, self.checkpoints[trial] = self.checkpoints.get(trial), key
        self._num_standing[key] += 1
        if before is None:
            return []
        self._leave_standing(before)
        return [before] if self.unneeded(before) else []

    def leave(self, trial: str, last: str | None = None) -> list[str]:
        """A trial has ended; what only it waits for and nobody has begun is dropped.

        Args:
            trial: Which.
            last: Key of the segment where it was, which it may not have asked for.

        Returns:
            Keys whose states nobody needs any more.
        """
        ahead = self._release(trial)
        unneeded = self.give(self.done[last], trial) if last in ahead else []
        unneeded += [key for key in ahead if self.unneeded(key) and key not in unneeded]
        self._settle(trial)
        for key in self._waits.pop(trial, ()):
            order = self.orders[key]
            order.waiters.discard(trial)
            if order.waiters or order.group is not None:
                self._requeue(order)
            else:
                self.withdraw(key)
        return unneeded

    def forget(self, trial: str) -> None:
        """A trial has left and needs not even the last state that it was given."""
        self._move(trial, None)

    def forget_all(self) -> None:
        """All trials have left; the states that they were given stay for those that come after them."""
        for standing in (self.positions, self.destinations, self.checkpoints):
            for key in standing.values():
                self._leave_standing(key)
            standing.clear()
        self.thinking.clear()

    def ready(self, num_workers: int | None = None) -> list[Order]:
        """Orders that could start now, the one with the most waiters first."""
        return [self.orders[key] for key in self._queue.in_order(num_workers)]

    def any_ready(self) -> bool:
        """Whether an order could start now."""
        return bool(self._queue.sizes())

    def assign(self, name: str, now: float) -> Order | None:
        """Gives a free group its next order, or None if there is none for it yet.

        Args:
            name: The group.
            now: Seconds on the clock that `finish` was told.
        """
        group = self.groups[name]
        assert group.order is None
        best = self._best(group)
        if best is None:
            return None
        lingering = group.free_since is not None and now - group.free_since < LINGER_SECONDS
        if lingering and best.segment.parent != group.held and self._num_thinking(group) > len(best.waiters):
            return None
        best.group, group.order = name, best.segment.key
        self._requeue(best)
        return best

    def _best(self, group: Group) -> Order | None:
        """The order with the most waiters; among equals one that follows the state that the group holds."""
        if group.num_workers not in self._queue.sizes():
            return None
        # A free group takes what follows the state that it holds by itself, so the others leave it alone.
        alike = [g for g in self.groups.values() if g.num_workers == group.num_workers and g.order is None]
        theirs = {g.held for g in alike} - {group.held}
        orders = (self.orders[key] for key in self._queue.in_order(group.num_workers))
        best = next((order for order in orders if order.segment.parent not in theirs), None)
        at_hand = self._queue.first_after(group.held or "", group.num_workers)
        if best is not None and at_hand is not None and len(self.orders[at_hand].waiters) == len(best.waiters):
            return self.orders[at_hand]
        return best

    def _num_thinking(self, group: Group) -> int:
        return len(self.thinking.get(group.held or "", ()))

    def finish(self, name: str, now: float) -> Order:
        """The group has trained its order and published the state."""
        group = self.groups[name]
        assert group.order is not None
        order = self.withdraw(group.order)
        group.held, group.order, group.free_since = order.segment.key, None, now
        self.add_done(order.segment, state_kept=True)
        return order

    def relieve(self, name: str, parent: str) -> None:
        """The parent's state is gone, but another search has finished the group's order, as `add_done` has told."""
        self._set_kept(parent, False)
        group = self.groups[name]
        assert group.order is not None
        self.withdraw(group.order)
        group.order = group.held = None

    def fail(self, name: str, error: str, lost: bool = False) -> Order | None:
        """The group could not train its order; the order goes back into the queue, or is given up.

        Args:
            name: The group.
            error: One line.
            lost: Whether a process was lost, rather than that the training has an error.

        Returns:
            The order, with its errors, if it is given up now: those who wait are to be told.
        """
        key = self.groups[name].order
        if key is None:
            return None
        order = self.orders[key]
        order.errors.append(error)
        order.losses += lost
        self.take_back(name)
        return order if order.waiters and order.hopeless else None

    def take_back(self, name: str) -> None:
        """The group does not train its order after all: it goes back into the queue, if it has waiters and hope."""
        group = self.groups[name]
        key, group.order, group.held = group.order, None, None
        if key is None:
            return
        order = self.orders[key]
        order.group = None
        if order.hopeless or not order.waiters:
            self.withdraw(key)
            return
        for trial in list(order.waiters):
            self._order(order.segment, trial)  # its parent's state may have been lost meanwhile

    def state_lost(self, name: str, parent: str, error: str) -> Order | None:
        """The stored state that the group was to start from is damaged or gone: it will be trained again.

        Returns:
            The order, with its errors, if that has happened too often.
        """
        self._set_kept(parent, False)
        given_up = self.fail(name, error)
        for other in list(self.orders.values()):
            for trial in list(other.waiters):
                self.ask(other.segment, trial)
        return given_up

    def withdraw(self, key: str) -> Order:
        """Takes an order out: it is done, dropped or given up."""
        order = self.orders.pop(key)
        self._queue.remove(order.segment)
        followers = self._followers[order.segment.parent]
        del followers[key]
        if not followers:
            del self._followers[order.segment.parent]
        for trial in order.waiters:
            self._waits[trial].discard(key)
        return order

    def waiting_for(self, key: str) -> list[Order]:
        """Orders that nobody has begun and that start from the state of this key."""
        return [order for order in self._followers.get(key, {}).values() if order.group is None]

    def add_group(self, name: str, num_workers: int) -> Group:
        """A group is being started."""
        group = self.groups[name] = Group(name, num_workers)
        return group

    def remove_group(self, name: str, error: str) -> Order | None:
        """A group has ended; its unfinished order counts a loss. Returns an order that is given up."""
        given_up = self.fail(name, error, lost=True)
        del self.groups[name]
        return given_up

    def groups_to_start(self) -> list[int]:
        """World sizes of the groups that distinct waiting work asks for, within the maximum."""
        room = self.max_groups - len(self.groups)
        if room <= 0 or not self.any_ready():
            return []
        idle = Counter(group.num_workers for group in self.groups.values() if group.order is None)
        wanted: list[int] = []
        for key in self._queue.in_order():
            size = self.orders[key].segment.num_workers
            if idle[size] > 0:
                idle[size] -= 1
            else:
                wanted.append(size)
                if len(wanted) == room:
                    break
        return wanted

    def group_to_stop(self) -> str | None:
        """A free group without work of its size, where another size is wanted and there is no room for it."""
        wanted = self._queue.sizes()
        if len(self.groups) < self.max_groups or wanted <= {group.num_workers for group in self.groups.values()}:
            return None
        idle = (g.name for g in self.groups.values() if g.order is None and g.num_workers not in wanted)
        return next(idle, None)

    def others_wait(self, num_workers: int) -> bool:
        """Whether work waits, and none of it for groups of this size."""
        wanted = self._queue.sizes()
        return bool(wanted) and num_workers not in wanted

    def spare_states(self, live: Iterable[str], num_trials: int) -> list[str]:
        """Keys of stage-one states that are kept for branches which no trial can begin any more.

        Args:
            live: Trials that go on.
            num_trials: How many there will be in all.
        """
        places = [self.done[self.positions[trial]].stage for trial in live if trial in self.positions]
        if len(self.positions) < num_trials or FIRST_STAGE in places:
            return []
        needed = {*self._num_standing, *self._followers}
        return sorted(k for k in self.kept - needed if k in self.done and self.done[k].stage == FIRST_STAGE)

    def unneeded(self, key: str) -> bool:
        """Whether a state is there that no trial needs and from which none can branch."""
        return (
            key in self.done and self._droppable(key) and not self._num_standing[key] and key not in self._followers
        )

    def dropped(self, keys: Iterable[str]) -> None:
        """The states of these keys are about to be deleted, or are gone."""
        for key in keys:
            self._set_kept(key, False)

    # What follows from what has changed

    def _settle(self, trial: str) -> None:
        """The trial no longer thinks about what to ask for next."""
        position = self.positions.get(trial, "")
        thinking = self.thinking.get(position, set())
        thinking.discard(trial)
        if not thinking:
            self.thinking.pop(position, None)

    def _arrive(self, segment: Segment, trial: str) -> str:
        """Key of the segment that the trial needs no longer: where it was, or, on a way taken twice, where it is."""
        position = self.positions.get(trial, segment.parent)
        destination = self.destinations.pop(trial, None)
        if destination is not None:
            self._leave_standing(destination)
        furthest = destination or (self.told_ahead.get(trial) or [position])[-1]
        if self._leads_to(segment, furthest):
            self.destinations[trial] = furthest
            self._num_standing[furthest] += 1
            return position
        return furthest

    def _leads_to(self, segment: Segment, key: str) -> bool:
        """Whether a segment comes before the one of this key in its lineage, or may do so."""
        while key in self.done and self.done[key].start_step >= segment.end_step:
            key = self.done[key].parent
            if key == segment.key or key not in self.done:  # an engine that was lost does not know all of it yet
                return True
        return False

    def _release(self, trial: str) -> list[str]:
        """A trial is where it says, and no longer somewhere in what it was told ahead, whose keys are returned."""
        ahead = self.told_ahead.pop(trial, [])
        for key in ahead:
            self._leave_standing(key)
        return ahead

    def _move(self, trial: str, position: str | None) -> None:
        left = self.positions.pop(trial, None)
        if left is not None:
            self._leave_standing(left)
        if position is not None:
            self.positions[trial] = position
            self._num_standing[position] += 1

    def _leave_standing(self, key: str) -> None:
        self._num_standing[key] -= 1
        if not self._num_standing[key]:
            del self._num_standing[key]

    def _requeue(self, order: Order) -> None:
        if order.group is None and order.segment.parent in self.kept:
            self._queue.put(order.segment, len(order.waiters), order.number)
        else:
            self._queue.remove(order.segment)

    def _set_kept(self, key: str, kept: bool) -> None:
        self.kept.add(key) if kept else self.kept.discard(key)
        for order in self._followers.get(key, {}).values():
            self._requeue(order)

    def _droppable_ancestors(self, segment: Segment) -> list[str]:
        """Ancestors whose states are there and could be dropped; stretches without any are walked only once."""
        found: list[str] = []
        stretch, key = [segment.key], segment.parent
        while True:
            if key not in self.done or self._droppable(key):
                self._leaps.update(dict.fromkeys(stretch, key))
                stretch = []
                if key not in self.done:
                    return found
                found.append(key)
            stretch.append(key)
            key = self._leaps.get(key, self.done[key].parent)

    def _droppable(self, key: str) -> bool:
        segment = self.done[key]
        may_branch = segment.stage == FIRST_STAGE and segment.end_step >= self.keep_first_stage_from
        return key in self.kept and not may_branch
