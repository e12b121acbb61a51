"""The engine's decisions, as plain data and pure logic: what to train next, where, and what to keep.

Knows no Ray and no clock, so that plans and simulations can drive the very logic that runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from latentsync_ray.segment import FIRST_STAGE, Segment

LINGER_SECONDS = 0.5
"""How long a group keeps itself free for the trials whose segment it has just finished: they are likely to go on
from the state that it holds, and the trunk would otherwise lose its turn at every boundary."""

MAX_FAILURES = 2
"""After so many errors in one key, all who wait for it get the last one."""

MAX_LOSSES = 5
"""The same for processes that were lost while they trained one key: machines go away for reasons of their own, but a
segment that needs too much memory loses its process every time."""


@dataclass
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


@dataclass
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
        self.thinking: dict[str, set[str]] = {}
        """Key -> trials that were given it and have not asked again."""
        self.checkpoints: dict[str, str] = {}
        """Trial -> key of the state that its newest checkpoint points to."""
        self._arrivals = 0

    def add_root(self, root: str) -> None:
        """Makes a root known: the state before the first step needs nothing stored."""
        self.kept.add(root)

    def add_done(self, segment: Segment, state_kept: bool) -> None:
        """Makes a finished segment known."""
        self.done[segment.key] = segment
        if state_kept:
            self.kept.add(segment.key)

    def ask(self, segment: Segment, trial: str) -> None:
        """A trial wants a segment; ancestors whose states are gone are ordered with it."""
        self._settle(trial)
        wanted: Segment | None = segment
        while wanted is not None:
            order = self.orders.get(wanted.key)
            if order is None:
                self._arrivals += 1
                order = self.orders[wanted.key] = Order(wanted, self._arrivals)
            order.waiters.add(trial)
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
        passed = {self.positions.get(trial, segment.parent)}
        parent = segment.parent
        while parent in self.done:  # ancestors that had to be trained again are no longer needed either
            passed.add(parent)
            parent = self.done[parent].parent
        self.positions[trial] = segment.key
        self.thinking.setdefault(segment.key, set()).add(trial)
        return sorted(key for key in passed if self._unneeded(key))

    def hold(self, trial: str, key: str) -> list[str]:
        """A trial's checkpoint points to a state, from which a clone may start. Returns keys no longer needed."""
        before, self.checkpoints[trial] = self.checkpoints.get(trial), key
        return [before] if before is not None and self._unneeded(before) else []

    def leave(self, trial: str) -> None:
        """A trial has ended; what only it waits for and nobody has begun is dropped."""
        self._settle(trial)
        for key, order in list(self.orders.items()):
            order.waiters.discard(trial)
            if not order.waiters and order.group is None:
                del self.orders[key]

    def _settle(self, trial: str) -> None:
        for trials in self.thinking.values():
            trials.discard(trial)
        self.thinking = {key: trials for key, trials in self.thinking.items() if trials}

    def ready(self, num_workers: int | None = None) -> list[Order]:
        """Orders that could start now, the one with the most waiters first."""
        orders = [
            order
            for order in self.orders.values()
            if order.group is None
            and order.segment.parent in self.kept
            and num_workers in (None, order.segment.num_workers)
        ]
        return sorted(orders, key=lambda order: (-len(order.waiters), order.number))

    def assign(self, name: str, now: float) -> Order | None:
        """Gives a free group its next order, or None if there is none for it yet.

        Args:
            name: The group.
            now: Seconds on the clock that `finish` was told.
        """
        group = self.groups[name]
        assert group.order is None
        # A free group takes what follows the state that it holds by itself, so the others leave it alone.
        alike = [g for g in self.groups.values() if g.num_workers == group.num_workers and g.order is None]
        theirs = {g.held for g in alike} - {group.held}
        orders = [o for o in self.ready(group.num_workers) if o.segment.parent not in theirs]
        if not orders:
            return None
        best = min(orders, key=lambda o: (-len(o.waiters), o.segment.parent != group.held, o.number))
        lingering = group.free_since is not None and now - group.free_since < LINGER_SECONDS
        if lingering and best.segment.parent != group.held and self._num_thinking(group) > len(best.waiters):
            return None
        best.group, group.order = name, best.segment.key
        return best

    def _num_thinking(self, group: Group) -> int:
        return len(self.thinking.get(group.held or "", ()))

    def finish(self, name: str, now: float) -> Order:
        """The group has trained its order and published the state."""
        group = self.groups[name]
        assert group.order is not None
        order = self.orders.pop(group.order)
        group.held, group.order, group.free_since = order.segment.key, None, now
        self.add_done(order.segment, state_kept=True)
        return order

    def fail(self, name: str, error: str, lost: bool = False) -> Order | None:
        """The group could not train its order; the order goes back into the queue, or is given up.

        Args:
            name: The group.
            error: One line.
            lost: Whether a process was lost, rather than that the training has an error.

        Returns:
            The order, with its errors, if it is given up now: those who wait are to be told.
        """
        group = self.groups[name]
        key, group.order, group.held = group.order, None, None
        if key is None:
            return None
        order = self.orders[key]
        order.group = None
        order.errors.append(error)
        order.losses += lost
        if not order.waiters:
            del self.orders[key]
        return self.orders.pop(key, None) if order.hopeless else None

    def state_lost(self, name: str, parent: str, error: str) -> Order | None:
        """The stored state that the group was to start from is damaged or gone: it will be trained again.

        Returns:
            The order, with its errors, if that has happened too often.
        """
        self.kept.discard(parent)
        given_up = self.fail(name, error)
        for other in list(self.orders.values()):
            for trial in list(other.waiters):
                self.ask(other.segment, trial)
        return given_up

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
        idle = [group.num_workers for group in self.groups.values() if group.order is None]
        wanted = []
        for order in self.ready():
            size = order.segment.num_workers
            if size in idle:
                idle.remove(size)
            elif room > 0:
                wanted.append(size)
                room -= 1
        return wanted

    def group_to_stop(self) -> str | None:
        """A free group without work of its size, where another size is wanted and there is no room for it."""
        wanted = {order.segment.num_workers for order in self.ready()}
        if len(self.groups) < self.max_groups or wanted <= {group.num_workers for group in self.groups.values()}:
            return None
        idle = (g.name for g in self.groups.values() if g.order is None and g.num_workers not in wanted)
        return next(idle, None)

    def spare_states(self, live: Iterable[str], num_trials: int) -> list[str]:
        """Keys of stage-one states that are kept for branches which no trial can begin any more.

        Args:
            live: Trials that go on.
            num_trials: How many there will be in all.
        """
        places = [self.done[self.positions[trial]].stage for trial in live if trial in self.positions]
        if len(self.positions) < num_trials or FIRST_STAGE in places:
            return []
        needed = {
            *self.positions.values(),
            *self.checkpoints.values(),
            *(order.segment.parent for order in self.orders.values()),
        }
        return sorted(k for k in self.kept - needed if k in self.done and self.done[k].stage == FIRST_STAGE)

    def _unneeded(self, key: str) -> bool:
        segment = self.done.get(key)
        if segment is None or key not in self.kept:
            return False
        if segment.stage == FIRST_STAGE and segment.end_step >= self.keep_first_stage_from:
            return False
        if key in self.positions.values() or key in self.checkpoints.values():
            return False
        return not any(order.segment.parent == key for order in self.orders.values())

    def dropped(self, keys: Iterable[str], drop: Callable[[str], None]) -> None:
        """Forgets the states of these keys and has them deleted."""
        for key in keys:
            self.kept.discard(key)
            drop(key)
