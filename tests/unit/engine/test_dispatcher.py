"""Whole searches through the dispatcher, in any order of events."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

from dispatching import lineage
from hypothesis import given, settings
from hypothesis import strategies as st

from latentsync_ray.config.recipe import SECOND_STAGE
from latentsync_ray.core.segment import Segment
from latentsync_ray.engine.assignment import Assignment
from latentsync_ray.engine.decisions import (
    LINGER_SECONDS,
    Decision,
    StartGroup,
    StopGroup,
    TrainOrder,
)
from latentsync_ray.engine.dispatcher import Dispatcher
from latentsync_ray.engine.orders import MAX_FAILURES, Order


class CheckedAssignment(Assignment):
    """An assignment whose choices are compared with those of a look at everything."""

    def __init__(self, made: Dispatcher, max_groups: int):
        super().__init__(made.book, max_groups)
        self.made = made

    def waiting(self, num_workers: int | None = None) -> list[Order]:
        orders = [
            order
            for order in self.made.book.orders.values()
            if not order.begun
            and order.segment.parent in self.made.states.kept
            and num_workers in (None, order.segment.num_workers)
        ]
        return sorted(orders, key=lambda order: (-len(order.waiters), order.number))

    def assign(self, name: str, now: float) -> Order | None:
        group = self.groups[name]
        others = [g for g in self.groups.values() if g.num_workers == group.num_workers and g.order is None]
        theirs = {g.held for g in others} - {group.held}
        orders = [order for order in self.waiting(group.num_workers) if order.segment.parent not in theirs]
        best = min(orders, key=lambda o: (-len(o.waiters), o.segment.parent != group.held, o.number), default=None)
        assert list(self.made.book.in_sequence(group.num_workers)) == self.waiting(group.num_workers)
        assigned = super().assign(name, now)
        assert assigned is None or assigned is best
        lingering = group.held is not None and now - group.free_since < LINGER_SECONDS
        assert assigned is not None or best is None or lingering
        return assigned

    def decide(
        self, now: float, may_begin: bool = True, check_idle: bool = False, near_steps: float = 0.0
    ) -> list[Decision]:
        decisions = super().decide(now, may_begin, check_idle, near_steps)
        started = [decision for decision in decisions if isinstance(decision, StartGroup)]
        assert list(self.made.book.in_sequence()) == self.waiting()
        before = [g for g in self.groups.values() if g.name not in {group.group for group in started}]
        free = Counter(group.num_workers for group in before if group.order is None)
        wanted = []
        for order in self.waiting():
            size = order.segment.num_workers
            free[size] -= 1
            wanted += [size] * (free[size] < 0)
        assert [group.num_workers for group in started] == wanted[: max(0, self.max_groups - len(before))]
        return decisions


class Checked(Dispatcher):
    """A dispatcher whose answers are compared with those of a look at everything."""

    def __init__(self, max_groups: int, keep_first_stage_from: int):
        super().__init__(max_groups, keep_first_stage_from)
        self.keep_first_stage_from = keep_first_stage_from
        self.assignment = CheckedAssignment(self, max_groups)

    def give(self, segment: Segment, trial: str) -> list[str]:
        stands, done = self.retention, self.states.done
        passed = {stands.positions.get(trial, segment.parent), *stands.told_ahead.get(trial, ())}
        parent = segment.parent
        while parent in done:
            passed.add(parent)
            parent = done[parent].parent
        unneeded = super().give(segment, trial)
        told = (key for ahead in stands.told_ahead.values() for key in ahead)
        needed = {*stands.positions.values(), *stands.previous.values(), *told}
        needed |= {order.segment.parent for order in self.book.orders.values()}
        assert set(unneeded) == {
            key
            for key in (passed & done.keys() & self.states.kept) - needed
            if done[key].stage == SECOND_STAGE or done[key].end_step < self.keep_first_stage_from
        }
        return unneeded

    def end_trial(self, trial: str, last: str | None = None) -> list[str]:
        unneeded = super().end_trial(trial, last)
        assert all(order.waiters or order.begun for order in self.book.orders.values())
        assert not any(trial in order.waiters for order in self.book.orders.values())
        assert trial not in self.retention.told_ahead
        return unneeded


class Search:
    """A whole search in which everything may happen in any order: what the engine does, without Ray.

    Args:
        rng: Chooses what happens next.
        trials: The segments that each trial walks.
        max_groups: Most worker groups at once.
        keep_from: Stage-one states from this step on are kept.
        num_faults: So many orders fail, groups are lost, or states turn out to be gone.
        num_leaves: So many trials are stopped on their way.
    """

    def __init__(
        self,
        rng: random.Random,
        trials: list[list[Segment]],
        max_groups: int,
        keep_from: int,
        num_faults: int = 0,
        num_leaves: int = 0,
    ):
        self.rng, self.num_faults, self.num_leaves = rng, num_faults, num_leaves
        self.made = Checked(max_groups, keep_from)
        self.made.add_root("root")
        self.todo = {f"t{number}": list(walk) for number, walk in enumerate(trials)}
        self.waiting: dict[str, Segment] = {}
        self.ahead: defaultdict[str, set[str]] = defaultdict(set)
        self.last: dict[str, str] = {}
        self.stored = {"root"}
        self.trained: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.ended: dict[str, str] = {}
        self.now = 0.0

    def run(self) -> None:
        """Until nothing more can happen."""
        while len(self.ended) < len(self.todo):
            happenings = [self.ask] * bool(self.thinking()) + [self.finish] * 2 * bool(self.busy())
            if not happenings:
                # All wait: lingering ends, a group makes room, another is started, and has to get an order.
                self.now += 2 * LINGER_SECONDS
                for _ in range(3):
                    self.hand_out()
                assert self.busy(), f"{self.waiting} wait for ever"
                continue
            happenings += [self.fault] * (self.num_faults > 0) * bool(self.busy())
            happenings += [self.leave] * (self.num_leaves > 0)
            self.rng.choice(happenings)()
            self.now += self.rng.choice([0.0, LINGER_SECONDS / 4, LINGER_SECONDS])
            if self.rng.random() < 0.8:
                self.hand_out()

    def thinking(self) -> list[str]:
        return [trial for trial in self.todo if trial not in self.waiting and trial not in self.ended]

    def busy(self) -> list[str]:
        return [group.name for group in self.made.assignment.groups.values() if group.order is not None]

    def ask(self) -> None:
        trial = self.rng.choice(self.thinking())
        if not self.todo[trial]:
            self.end(trial, "finished")
            return
        segment = self.todo[trial].pop(0)
        if segment.key in self.ahead[trial]:
            self.last[trial] = segment.key
        elif segment.key in self.made.states.done:
            self.give(trial, segment)
        else:
            assert self.made.book.missing_ancestor(segment) is None
            self.made.ask(segment, trial)
            self.waiting[trial] = segment

    def give(self, trial: str, segment: Segment) -> None:
        self.waiting.pop(trial, None)
        unneeded = self.made.give(segment, trial)
        self.last[trial] = segment.key
        self.ahead[trial] = set(self.made.retention.tell_ahead(trial)) if self.rng.random() < 0.7 else set()
        self.drop(unneeded)

    def end(self, trial: str, how: str) -> None:
        self.ended[trial] = how
        self.drop(self.made.end_trial(trial, self.last.get(trial)))

    def drop(self, unneeded: list[str]) -> None:
        """States go, but none where a trial is or where it has ended."""
        assert len(set(unneeded)) == len(unneeded)
        assert not set(self.last.values()) & set(unneeded)
        for key in unneeded:
            lost = self.made.states.done[key]
            assert lost.stage == SECOND_STAGE or lost.end_step < self.made.keep_first_stage_from
        self.made.drop(unneeded)
        self.stored.difference_update(unneeded)

    def finish(self) -> None:
        order = self.made.finish(self.rng.choice(self.busy()), self.now)
        key = order.segment.key
        self.trained[key] += 1
        self.stored.add(key)
        for trial, segment in list(self.waiting.items()):
            if segment.key == key:
                self.give(trial, segment)

    def fault(self) -> None:
        self.num_faults -= 1
        name = self.rng.choice(self.busy())
        order = self.made.assignment.order_of(name)
        assert order is not None
        segment = order.segment
        kind = self.rng.choice(["order", "group", "state"])
        self.failures[segment.key] += bool(order.waiters)
        if kind == "state" and segment.parent != "root":
            self.stored.discard(segment.parent)
            given_up = self.made.state_lost(name, segment.parent, "damaged", 0.0)
        elif kind == "group":
            given_up = self.made.end_group(name, "lost", 0.0)
        else:
            given_up = self.made.fail(name, "fault", 0.0)
        assert all(order.segment.key in self.failures for order in given_up[:1])
        for order in given_up[1:]:  # they wait for a state that will not come
            self.failures[order.segment.key] += 1
            assert order.errors[-1] == given_up[0].errors[-1]
        for trial, segment in list(self.waiting.items()):
            if segment.key in {order.segment.key for order in given_up}:
                del self.waiting[trial]
                self.end(trial, "failed")

    def leave(self) -> None:
        self.num_leaves -= 1
        alive = [trial for trial in self.todo if trial not in self.ended]
        trial = self.rng.choice(alive)
        self.waiting.pop(trial, None)
        self.end(trial, "stopped")

    def hand_out(self) -> None:
        """As the engine does after everything that happens."""
        groups = self.made.assignment.groups
        for decision in self.made.decide(self.now):
            assert len(groups) <= self.made.assignment.max_groups
            match decision:
                case TrainOrder(group, order):
                    assert groups[group].order is order
                    assert [g.order for g in groups.values()].count(order) == 1
                    assert order.segment.parent in self.stored
                    assert order.segment.num_workers == groups[group].num_workers
                case StartGroup(group):
                    self.made.assignment.up(group, self.now)
                case StopGroup(group):
                    assert self.made.end_group(group, "not needed", self.now) == []


@st.composite
def searches(draw: st.DrawFn, branches: tuple[str, ...] = ("a", "aa", "b", "bbb")) -> tuple[list[list[Segment]], int]:
    """Trials that share a stage one and branch off where they like; and how many groups there may be."""
    first_workers, second_workers = draw(st.sampled_from([(1, 1), (1, 1), (1, 2), (2, 1)]))
    trials = draw(st.lists(st.tuples(st.integers(2, 4), st.sampled_from(branches)), min_size=1, max_size=6))
    walks = [lineage(num_first, branch, first_workers, second_workers) for num_first, branch in trials]
    return walks, draw(st.integers(1, 3))


orders_of_events = st.integers(0, 2**32).map(random.Random)


@settings(deadline=None)
@given(searches(), orders_of_events)
def test_every_segment_is_trained_exactly_once(searched: tuple[list[list[Segment]], int], rng: random.Random) -> None:
    walks, max_groups = searched
    search = Search(rng, walks, max_groups, keep_from=2)
    search.run()
    assert search.trained == Counter({segment.key for walk in walks for segment in walk})
    assert set(search.ended.values()) == {"finished"}
    assert not search.made.book.orders
    assert search.stored == search.made.states.kept


@settings(deadline=None)
@given(searches(), orders_of_events, st.integers(1, 4))
def test_trials_that_are_stopped_cost_nothing_more(
    searched: tuple[list[list[Segment]], int], rng: random.Random, num_leaves: int
) -> None:
    walks, max_groups = searched
    search = Search(rng, walks, max_groups, keep_from=2, num_leaves=num_leaves)
    search.run()
    assert set(search.trained.values()) <= {1}
    finished = [walk for number, walk in enumerate(walks) if search.ended[f"t{number}"] == "finished"]
    assert {segment.key for walk in finished for segment in walk} <= set(search.trained)
    # What is left has been begun: nothing that nobody wants is queued.
    assert all(order.begun for order in search.made.book.orders.values())


@settings(deadline=None)
@given(searches(("a", "ab", "aab", "b")), orders_of_events, st.integers(1, 6), st.integers(0, 2))
def test_nobody_waits_for_ever_whatever_fails(
    searched: tuple[list[list[Segment]], int], rng: random.Random, num_faults: int, num_leaves: int
) -> None:
    """Trials change settings in stage two as well here, so that they branch off from states that are gone."""
    walks, max_groups = searched
    search = Search(rng, walks, max_groups, keep_from=2, num_faults=num_faults, num_leaves=num_leaves)
    search.run()
    assert set(search.ended) == set(search.todo)
    if "failed" in search.ended.values():
        assert max(search.failures.values()) >= MAX_FAILURES
    for number, walk in enumerate(walks):
        if search.ended[f"t{number}"] == "finished":
            assert all(search.trained[segment.key] >= 1 for segment in walk)
    assert all(order.begun for order in search.made.book.orders.values())
