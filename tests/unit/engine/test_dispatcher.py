"""The engine's rules one by one, and whole searches in any order of events."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from latentsync_ray.config.recipe import FIRST_STAGE, SECOND_STAGE
from latentsync_ray.core.segment import Segment
from latentsync_ray.engine.assignment import Assignment, Phase
from latentsync_ray.engine.decisions import (
    LINGER_SECONDS,
    YIELD_SECONDS,
    DecideAgain,
    Decision,
    StartGroup,
    StopGroup,
    TrainOrder,
)
from latentsync_ray.engine.dispatcher import Dispatcher
from latentsync_ray.engine.orders import MAX_FAILURES, MAX_LOSSES, Order


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


def test_the_segment_with_most_waiters_comes_first_then_the_oldest() -> None:
    made = dispatcher()
    a, b, c = lineage(0, "a")[0], lineage(0, "b")[0], lineage(0, "c")[0]
    made.ask(a, "t0")
    made.ask(b, "t1")
    made.ask(c, "t2")
    made.ask(c, "t3")
    assert [order.segment for order in made.book.in_sequence()] == [c, a, b]
    for segment in (c, a, b):
        train(made, segment)


def test_among_equals_a_group_prefers_what_follows_the_state_that_it_holds() -> None:
    made = dispatcher()
    (first, second), (other,) = lineage(0, "ab"), lineage(0, "c")
    made.ask(first, "t0")
    train(made, first)
    made.ask(other, "t1")
    made.give(first, "t0")
    made.ask(second, "t0")
    train(made, second)
    train(made, other)


def test_more_waiters_count_more_than_a_state_at_hand() -> None:
    made = dispatcher()
    (first, second), (other,) = lineage(0, "ab"), lineage(0, "c")
    made.ask(first, "t0")
    train(made, first)
    made.give(first, "t0")
    for segment, trial in ((second, "t0"), (other, "t1"), (other, "t2")):
        made.ask(segment, trial)
    train(made, other)


def test_a_group_leaves_alone_what_another_free_group_holds() -> None:
    made = dispatcher(num_groups=2)
    first, second = lineage(0, "ab")
    made.ask(first, "t0")
    train(made, first)
    made.give(first, "t0")
    made.ask(second, "t0")
    assert made.assignment.assign("group-2", 0.0) is None
    train(made, second)


def test_what_a_busy_group_or_one_of_another_size_holds_is_free_for_all() -> None:
    made = dispatcher(num_groups=2)
    first, second = lineage(0, "ab")
    made.ask(first, "t0")
    train(made, first)
    made.give(first, "t0")
    made.ask(lineage(0, "c")[0], "t1")
    assert made.assignment.assign("group-1", LINGER_SECONDS) is not None
    made.ask(second, "t0")
    train(made, second, "group-2")

    made = dispatcher()
    first, second = lineage(1, "a", second_workers=2)
    made.ask(first, "t0")
    train(made, first)
    made.give(first, "t0")
    made.ask(second, "t0")
    (decision,) = [d for d in made.decide(0.0) if isinstance(d, StartGroup)]
    assert decision.num_workers == 2
    made.assignment.up(decision.group, 0.0)
    train(made, second, decision.group)


def test_two_free_groups_that_hold_the_same_state_do_not_wait_for_each_other() -> None:
    made = dispatcher(num_groups=2)
    first, second = lineage(0, "ab")
    made.ask(first, "t0")
    train(made, first)
    made.give(first, "t0")
    made.ask(second, "t0")
    made.assignment.groups["group-2"].held = first.key
    train(made, second, "group-2")


def test_a_group_lingers_for_the_trials_that_it_has_just_served() -> None:
    made = dispatcher()
    (first, second), (other,) = lineage(0, "ab"), lineage(0, "c")
    for trial in ("t0", "t1"):
        made.ask(first, trial)
    train(made, first, now=10.0)
    for trial in ("t0", "t1"):
        made.give(first, trial)
    made.ask(other, "t2")

    # Two think, one waits: the group keeps itself free, but not for long.
    assert made.assignment.assign("group-1", 10.0 + LINGER_SECONDS / 2) is None
    made.ask(second, "t0")
    made.ask(second, "t1")
    train(made, second, now=10.0 + LINGER_SECONDS / 2)
    for trial in ("t0", "t1"):
        made.give(second, trial)
    train(made, other, now=10.0 + 2 * LINGER_SECONDS)


def test_nobody_lingers_for_a_trial_that_has_gone_on_or_left() -> None:
    made = dispatcher()
    (first, second), (other,) = lineage(0, "ab"), lineage(0, "c")
    made.add_done(second, state_kept=True)
    for trial in ("t0", "t1", "t2"):
        made.ask(first, trial)
    train(made, first)
    for trial in ("t0", "t1", "t2"):
        made.give(first, trial)
    made.ask(other, "t3")
    assert made.assignment.assign("group-1", 0.0) is None
    made.give(second, "t0")  # found, so it never asked for it
    made.end_trial("t1")
    train(made, other)


def test_nobody_lingers_for_trials_that_have_asked_for_something_else() -> None:
    made = dispatcher()
    (first,), (other,) = lineage(0, "a"), lineage(0, "b")
    for trial in ("t0", "t1", "t2"):
        made.ask(first, trial)
    train(made, first)
    for trial in ("t0", "t1", "t2"):
        made.give(first, trial)
    made.ask(other, "t0")
    assert made.assignment.assign("group-1", 0.0) is None  # two think, one waits
    made.ask(other, "t1")
    train(made, other)


def test_a_trial_that_leaves_drops_what_it_alone_waits_for_unless_it_is_in_flight() -> None:
    made = dispatcher(num_groups=1)
    mine, ours, begun = lineage(0, "a")[0], lineage(0, "b")[0], lineage(0, "c")[0]
    made.ask(begun, "t0")
    assert made.assignment.assign("group-1", 0.0).segment == begun
    for segment, trials in ((mine, ["t0"]), (ours, ["t0", "t1"])):
        for trial in trials:
            made.ask(segment, trial)
    made.end_trial("t0")
    assert set(made.book.orders) == {ours.key, begun.key}
    made.finish("group-1", 0.0)
    assert begun.key in made.states.kept
    train(made, ours)
    assert not made.book.orders


def test_an_order_that_is_taken_back_has_no_fault() -> None:
    made = dispatcher()
    segment = lineage(1)[0]
    made.ask(segment, "t0")
    for _ in range(2 * MAX_FAILURES):
        order = made.assignment.assign("group-1", 0.0)
        assert order is not None and order.segment == segment
        made.take_back("group-1", 0.0)
        assert made.assignment.groups["group-1"].held is None and made.book.ready.sizes()
    assert made.book.orders[segment.key].errors == []
    made.assignment.assign("group-1", 0.0)
    made.end_trial("t0")
    made.take_back("group-1", 0.0)
    assert not made.book.orders


def test_two_failures_of_a_key_give_it_up() -> None:
    made = dispatcher()
    segment = lineage(1)[0]
    made.ask(segment, "t0")
    for number in range(1, MAX_FAILURES):
        made.assignment.assign("group-1", 0.0)
        assert made.fail("group-1", f"fault {number}", 0.0) == []
        assert made.assignment.groups["group-1"].held is None
    made.assignment.assign("group-1", 0.0)
    assert made.fail("group-1", "a worker was lost", 0.0, lost=True) == []  # that is nothing that the training does
    made.assignment.assign("group-1", 0.0)
    (given_up,) = made.fail("group-1", "fault again", 0.0)
    assert given_up.segment == segment
    assert given_up.errors == ["fault 1", "a worker was lost", "fault again"]
    assert given_up.waiters == {"t0"}
    assert not made.book.orders


def test_what_waits_for_a_state_that_will_not_come_fails_with_it() -> None:
    made = dispatcher(num_groups=2)
    one, two, three = lineage(0, "abc")
    made.add_done(one, state_kept=False)
    made.add_done(two, state_kept=False)
    made.ask(three, "t0")
    for number in range(MAX_FAILURES):
        order = made.assignment.assign("group-1", 0.0)
        assert order is not None and order.segment == one
        order.diverged = True
        given_up = made.fail("group-1", f"fault {number}", 0.0)
    assert [order.segment for order in given_up] == [one, two, three]
    assert all(order.diverged and order.errors[-1] == "fault 1" for order in given_up)
    assert not made.book.orders


def test_a_key_that_loses_its_processes_again_and_again_is_given_up() -> None:
    made = dispatcher(num_groups=0)
    segment = lineage(1)[0]
    made.ask(segment, "t0")
    for number in range(MAX_LOSSES):
        group = start(made)
        made.assignment.assign(group, 0.0)
        given_up = made.end_group(group, f"loss {number}", 0.0)
        assert len(given_up) == (number + 1 == MAX_LOSSES)
    assert len(given_up[0].errors) == MAX_LOSSES
    assert not made.book.orders and not made.assignment.groups


def test_a_failure_that_nobody_waits_for_is_forgotten() -> None:
    made = dispatcher()
    segment = lineage(1)[0]
    made.ask(segment, "t0")
    made.assignment.assign("group-1", 0.0)
    made.end_trial("t0")
    assert made.fail("group-1", "fault", 0.0) == []
    assert not made.book.orders
    made.ask(segment, "t1")
    assert train(made, segment).errors == []


def test_an_idle_group_that_ends_costs_nothing() -> None:
    made = dispatcher()
    made.ask(lineage(1)[0], "t0")
    assert made.end_group("group-1", "gone", 0.0) == []
    assert made.decide(0.0) == [StartGroup("group-2", 1)]


def test_a_lost_state_is_trained_again_from_the_nearest_kept_ancestor() -> None:
    made = dispatcher(num_groups=2)
    one, two, three, four = lineage(0, "abcd")
    for segment, kept in ((one, True), (two, False), (three, True)):
        made.add_done(segment, kept)
    made.give(three, "t0")
    made.states.kept.add(one.key)
    made.ask(four, "t0")
    assert made.assignment.assign("group-1", 0.0).segment == four
    made.state_lost("group-1", three.key, "damaged", 0.0)
    made.ask(four, "t1")
    assert [order.segment for order in made.book.in_sequence()] == [two]
    train(made, two)
    # Somebody else passes by on a branch of its own: what waits still needs the state.
    branch = Segment(two.key, SECOND_STAGE, {"num_workers": 1, "name": "x"}, 2, 0, 3)
    made.add_done(branch, state_kept=False)
    assert two.key not in made.give(branch, "t2")
    train(made, three)
    assert train(made, four).waiters == {"t0", "t1"}
    # What was trained again on the way is not kept for ever.
    assert set(made.give(four, "t0")) == {one.key, two.key, three.key}


def test_a_lost_state_that_nobody_waits_for_is_left_alone() -> None:
    made = dispatcher(num_groups=2)
    one, two = lineage(0, "ab")
    sibling = lineage(0, "ac")[1]
    made.add_done(one, state_kept=True)
    made.ask(two, "t0")
    made.ask(sibling, "t1")
    assert made.assignment.assign("group-1", 0.0).segment == two
    made.end_trial("t0")
    made.state_lost("group-1", one.key, "damaged", 0.0)
    assert set(made.book.orders) == {one.key, sibling.key}
    train(made, one)
    train(made, sibling)


def test_who_fails_after_its_state_was_lost_to_another_one_gets_it_trained_again() -> None:
    made = dispatcher(num_groups=2)
    parent, mine = lineage(0, "ab")
    theirs = lineage(0, "ac")[1]
    made.add_done(parent, state_kept=True)
    made.ask(mine, "t0")
    made.ask(theirs, "t1")
    assert made.assignment.assign("group-1", 0.0).segment == mine
    assert made.assignment.assign("group-2", 0.0).segment == theirs
    made.state_lost("group-2", parent.key, "damaged", 0.0)
    made.end_trial("t1")
    assert made.fail("group-1", "fault", 0.0) == []
    train(made, parent)
    train(made, mine)


def test_a_store_that_loses_every_state_ends_in_an_error() -> None:
    made = dispatcher(num_groups=1)
    one, two = lineage(0, "ab")
    made.add_done(one, state_kept=True)
    made.ask(two, "t0")
    for number in range(MAX_FAILURES):
        assert made.assignment.assign("group-1", 0.0).segment == two
        given_up = made.state_lost("group-1", one.key, f"damaged {number}", 0.0)
        if not given_up:
            train(made, one)
    assert [order.errors for order in given_up] == [["damaged 0", "damaged 1"]]


def test_ancestors_that_nobody_has_told_of_are_asked_for() -> None:
    made = dispatcher()
    one, two, three = lineage(0, "abc")
    assert made.book.missing_ancestor(three) == two.key
    made.add_done(two, state_kept=False)
    assert made.book.missing_ancestor(three) == one.key
    made.add_done(one, state_kept=True)
    assert made.book.missing_ancestor(three) is None
    made.ask(three, "t0")
    assert [order.segment for order in made.book.in_sequence()] == [two]


def test_a_state_is_dropped_once_every_trial_has_passed_it_unless_a_branch_may_start_there() -> None:
    made = dispatcher(keep_from=2)
    segments = lineage(3, "ab")
    for segment in segments:
        made.ask(segment, "t0")
        made.ask(segment, "t1")
        train(made, segment)
        unneeded = {trial: made.give(segment, trial) for trial in ("t0", "t1")}
        # t1 still stands at the parent when t0 goes on.
        assert unneeded["t0"] == []
        passed_for_good = segment.parent in (segments[0].key, segments[3].key)
        assert unneeded["t1"] == ([segment.parent] if passed_for_good else [])
        dropped: list[str] = []
        made.drop(unneeded["t1"])
        dropped += unneeded["t1"]
        assert dropped == unneeded["t1"]
    assert made.states.kept == {"root", segments[1].key, segments[2].key, segments[4].key}


def test_a_trial_that_begins_anew_finds_the_state_where_it_was() -> None:
    """Its process was lost: it walks from the first segment again, and has nothing trained twice."""
    made = dispatcher()
    segments = lineage(1, "bbb")
    for segment in segments[:3]:
        made.ask(segment, "t0")
        train(made, segment)
        made.drop(made.give(segment, "t0"))
    for segment in segments[:3]:
        made.drop(made.give(segment, "t0"))
        assert segments[2].key in made.states.kept
    assert not made.retention.destinations
    made.ask(segments[3], "t0")
    assert [order.segment for order in made.book.in_sequence()] == segments[3:]
    train(made, segments[3])
    assert made.give(segments[3], "t0") == [segments[2].key]


def test_a_trial_that_turns_off_on_its_way_back_needs_the_state_no_more() -> None:
    made = dispatcher()
    (first, *_, last), (_, other) = lineage(1, "bb"), lineage(1, "c")
    for segment in lineage(1, "bb"):
        made.ask(segment, "t0")
        train(made, segment)
        made.drop(made.give(segment, "t0"))
    made.ask(other, "t1")
    train(made, other)
    assert made.give(first, "t0") == []
    assert made.give(other, "t0") == [last.key]


def test_groups_are_started_for_distinct_work_within_the_maximum() -> None:
    made = dispatcher(max_groups=2, num_groups=0)
    assert made.decide(0.0) == []
    for number, name in enumerate("abc"):
        made.ask(lineage(0, name)[0], f"t{number}")
    assert made.decide(0.0) == [StartGroup("group-1", 1), StartGroup("group-2", 1)]
    assert made.decide(0.0) == []  # they start
    made.end_group("group-1", "lost", 0.0)
    assert made.decide(0.0) == [StartGroup("group-3", 1)]


def test_a_group_without_work_makes_room_for_another_size() -> None:
    made = dispatcher(max_groups=1, num_groups=1)
    single, pair = lineage(1)[0], lineage(0, "a", second_workers=2)[0]
    made.ask(single, "t0")
    made.ask(pair, "t1")
    (decision,) = made.decide(0.0)  # it has work of its own
    assert isinstance(decision, TrainOrder) and decision.order.segment == single
    made.finish("group-1", 0.0)
    assert made.decide(0.0) == [StopGroup("group-1")]
    assert made.decide(0.0) == []  # it ends, and leaves room
    made.end_group("group-1", "not needed", 0.0)
    assert made.decide(0.0) == [StartGroup("group-2", 2)]


def test_groups_stop_when_idle_and_sooner_if_only_work_of_other_sizes_waits() -> None:
    made = dispatcher(max_groups=3, num_groups=0, idle=60.0)
    first, second = start(made, now=0.0), start(made, now=50.0)
    assert made.decide(59.0, check_idle=True) == []
    assert made.decide(60.0) == []  # nobody has asked about it
    assert made.decide(60.0, check_idle=True) == [StopGroup(first)]
    made.end_group(first, "not needed", 60.0)
    made.ask(lineage(0, "a", second_workers=2)[0], "t0")
    third = made.decide(50.0 + YIELD_SECONDS / 2, check_idle=True)
    assert third == [StartGroup("group-3", 2), DecideAgain(LINGER_SECONDS)]
    assert StopGroup(second) in made.decide(50.0 + YIELD_SECONDS, check_idle=True)


def test_once_nothing_may_begin_free_groups_stop() -> None:
    made = dispatcher(max_groups=3, num_groups=2, idle=1000.0)
    made.assignment.start_group(1)
    for name, trial in (("a", "t0"), ("b", "t1")):
        made.ask(lineage(0, name)[0], trial)
    assert made.assignment.assign("group-1", 0.0) is not None
    assert made.decide(0.0, may_begin=False) == []
    assert made.decide(0.0, may_begin=False, check_idle=True) == [StopGroup("group-2")]


def test_workers_that_are_replaced_hold_nothing_and_get_orders_when_they_are_up() -> None:
    made = dispatcher()
    first, second = lineage(0, "ab")
    made.ask(first, "t0")
    train(made, first)
    made.give(first, "t0")
    made.ask(second, "t0")
    made.assignment.restarts("group-1")
    assert not any(isinstance(decision, TrainOrder) for decision in made.decide(1.0))
    made.assignment.up("group-1", 2.0)
    assert made.assignment.groups["group-1"].held is None
    (decision,) = [decision for decision in made.decide(2.0) if isinstance(decision, TrainOrder)]
    assert decision.order.segment == second
    made.assignment.stop_group("group-1")
    made.fail("group-1", "fault", 3.0)
    made.assignment.up("group-1", 3.0)  # who stops gets no more orders, even if its workers come back
    assert made.assignment.groups["group-1"].phase is Phase.STOPPING
    assert not any(isinstance(decision, TrainOrder) and decision.group == "group-1" for decision in made.decide(3.0))


def test_a_group_that_lingers_asks_for_another_decision() -> None:
    made = dispatcher(max_groups=1)
    (first,), (other,) = lineage(0, "a"), lineage(0, "b")
    for trial in ("t0", "t1"):
        made.ask(first, trial)
    train(made, first)
    for trial in ("t0", "t1"):
        made.give(first, trial)
    made.ask(other, "t2")
    assert made.decide(0.0) == [DecideAgain(LINGER_SECONDS)]
    (decision,) = made.decide(LINGER_SECONDS)
    assert isinstance(decision, TrainOrder) and decision.order.segment == other


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

    def decide(self, now: float, may_begin: bool = True, check_idle: bool = False) -> list[Decision]:
        decisions = super().decide(now, may_begin, check_idle)
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
        needed = {*stands.positions.values(), *told, *(o.segment.parent for o in self.book.orders.values())}
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


def test_what_was_told_ahead_is_kept_until_the_trial_is_heard_of_again() -> None:
    made, walk = dispatcher(), lineage(0, "abcd")
    for segment in walk:
        made.ask(segment, "before")
        train(made, segment)
        made.give(segment, "before")
    assert made.give(walk[0], "t0") == []
    assert made.retention.tell_ahead("t0") == [segment.key for segment in walk[1:]]
    assert made.end_trial("before") == []
    # It goes its own way from the second one, of which nobody was told.
    own = lineage(0, "abe")[2]
    assert own.parent == walk[1].key
    made.ask(own, "t0")
    train(made, own)
    assert made.give(own, "t0") == sorted([walk[0].key, walk[1].key, walk[2].key])
    assert made.retention.tell_ahead("t0") == []
    # Two ways lead on from there now.
    made.give(walk[0], "t1")
    assert made.retention.tell_ahead("t1") == [walk[1].key]
    made.end_trial("t1", walk[1].key)
    assert made.retention.positions["t1"] == walk[1].key


def test_who_leaves_keeps_nothing_of_which_he_was_told() -> None:
    made, walk = dispatcher(), lineage(0, "abc")
    for segment in walk:
        made.add_done(segment, state_kept=True)
    made.give(walk[0], "t0")
    made.retention.tell_ahead("t0")
    assert made.end_trial("t0", walk[0].key) == [segment.key for segment in walk[1:]]


def test_a_trial_that_was_lost_keeps_the_furthest_state_of_which_it_was_told() -> None:
    made, walk = dispatcher(), lineage(0, "abcd")
    for segment in walk:
        made.add_done(segment, state_kept=True)
    made.give(walk[0], "t0")
    made.retention.tell_ahead("t0")
    made.drop(made.give(walk[0], "t0"))  # a new process begins at step 0
    assert walk[-1].key in made.states.kept


def test_an_engine_that_was_lost_keeps_the_furthest_state_though_it_does_not_know_the_way_there() -> None:
    made, walk = dispatcher(keep_from=9), lineage(2, "abc")
    for segment in walk[3:]:  # what a trial asks for makes known no more than one state to start from
        made.add_done(segment, state_kept=True)
    made.give(walk[4], "t0")
    for segment in walk[:3]:  # a new process of the trial begins anew
        made.add_done(segment, state_kept=True)
        made.drop(made.give(segment, "t0"))
        assert walk[4].key in made.states.kept


def test_trials_that_come_again_find_the_last_states_and_those_before_go() -> None:
    """Ray Tune names them anew; nothing of the names before may keep a state."""
    made, (first, second) = dispatcher(), lineage(0, "ab")
    for segment in (first, second):
        made.ask(segment, "before")
        train(made, segment)
        made.retention.checkpoint("before", segment.key)
        made.drop(made.give(segment, "before"))
    made.end_trial("before")
    made.retention.forget_all()
    assert second.key in made.states.kept
    unneeded = [key for segment in (first, second) for key in made.give(segment, "after")]
    assert second.key in made.states.kept and second.key not in unneeded
    after = lineage(0, "abc")[2]
    made.ask(after, "after")
    train(made, after)
    assert made.give(after, "after") == [second.key]
