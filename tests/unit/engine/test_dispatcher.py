"""The engine's rules one by one, and whole searches in any order of events."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from latentsync_ray.config.recipe import FIRST_STAGE, SECOND_STAGE
from latentsync_ray.core.segment import Segment
from latentsync_ray.engine.dispatcher import LINGER_SECONDS, MAX_FAILURES, MAX_LOSSES, Dispatcher, Order


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


def dispatcher(max_groups: int = 2, num_groups: int = 1, keep_from: int = 0) -> Dispatcher:
    made = Dispatcher(max_groups, keep_from)
    made.add_root("root")
    for number in range(num_groups):
        made.add_group(f"g{number}", 1)
    return made


def train(made: Dispatcher, segment: Segment, group: str = "g0", now: float = 0.0) -> Order:
    """Has a group train a segment that is its next order."""
    order = made.assign(group, now)
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
    assert [order.segment for order in made.ready()] == [c, a, b]
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
    assert made.assign("g1", 0.0) is None
    train(made, second)


def test_what_a_busy_group_or_one_of_another_size_holds_is_free_for_all() -> None:
    made = dispatcher(num_groups=2)
    first, second = lineage(0, "ab")
    made.ask(first, "t0")
    train(made, first)
    made.give(first, "t0")
    made.ask(lineage(0, "c")[0], "t1")
    assert made.assign("g0", LINGER_SECONDS) is not None
    made.ask(second, "t0")
    train(made, second, "g1")

    made = dispatcher()
    first, second = lineage(1, "a", second_workers=2)
    made.ask(first, "t0")
    train(made, first)
    made.give(first, "t0")
    made.ask(second, "t0")
    assert made.groups_to_start() == [2]
    made.add_group("pair", 2)
    train(made, second, "pair")


def test_two_free_groups_that_hold_the_same_state_do_not_wait_for_each_other() -> None:
    made = dispatcher(num_groups=2)
    first, second = lineage(0, "ab")
    made.ask(first, "t0")
    train(made, first)
    made.give(first, "t0")
    made.ask(second, "t0")
    made.groups["g1"].held = first.key
    train(made, second, "g1")


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
    assert made.assign("g0", 10.0 + LINGER_SECONDS / 2) is None
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
    assert made.assign("g0", 0.0) is None
    made.give(second, "t0")  # found, so it never asked for it
    made.leave("t1")
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
    assert made.assign("g0", 0.0) is None  # two think, one waits
    made.ask(other, "t1")
    train(made, other)


def test_a_trial_that_leaves_drops_what_it_alone_waits_for_unless_it_is_in_flight() -> None:
    made = dispatcher(num_groups=1)
    mine, ours, begun = lineage(0, "a")[0], lineage(0, "b")[0], lineage(0, "c")[0]
    made.ask(begun, "t0")
    assert made.assign("g0", 0.0).segment == begun
    for segment, trials in ((mine, ["t0"]), (ours, ["t0", "t1"])):
        for trial in trials:
            made.ask(segment, trial)
    made.leave("t0")
    assert set(made.orders) == {ours.key, begun.key}
    made.finish("g0", 0.0)
    assert begun.key in made.kept
    train(made, ours)
    assert not made.orders


def test_an_order_that_is_taken_back_has_no_fault() -> None:
    made = dispatcher()
    segment = lineage(1)[0]
    made.ask(segment, "t0")
    for _ in range(2 * MAX_FAILURES):
        order = made.assign("g0", 0.0)
        assert order is not None and order.segment == segment
        made.take_back("g0")
        assert made.groups["g0"].held is None and made.any_ready()
    assert made.orders[segment.key].errors == []
    made.assign("g0", 0.0)
    made.leave("t0")
    made.take_back("g0")
    assert not made.orders


def test_two_failures_of_a_key_give_it_up() -> None:
    made = dispatcher()
    segment = lineage(1)[0]
    made.ask(segment, "t0")
    for number in range(1, MAX_FAILURES):
        made.assign("g0", 0.0)
        assert made.fail("g0", f"fault {number}") is None
        assert made.groups["g0"].held is None
    made.assign("g0", 0.0)
    assert made.fail("g0", "a worker was lost", lost=True) is None  # that is nothing that the training does
    made.assign("g0", 0.0)
    given_up = made.fail("g0", "fault again")
    assert given_up is not None
    assert given_up.segment == segment
    assert given_up.errors == ["fault 1", "a worker was lost", "fault again"]
    assert given_up.waiters == {"t0"}
    assert not made.orders


def test_a_key_that_loses_its_processes_again_and_again_is_given_up() -> None:
    made = dispatcher(num_groups=0)
    segment = lineage(1)[0]
    made.ask(segment, "t0")
    for number in range(MAX_LOSSES):
        made.add_group("g0", 1)
        made.assign("g0", 0.0)
        given_up = made.remove_group("g0", f"loss {number}")
        assert (given_up is None) == (number + 1 < MAX_LOSSES)
    assert given_up is not None and len(given_up.errors) == MAX_LOSSES
    assert not made.orders and not made.groups


def test_a_failure_that_nobody_waits_for_is_forgotten() -> None:
    made = dispatcher()
    segment = lineage(1)[0]
    made.ask(segment, "t0")
    made.assign("g0", 0.0)
    made.leave("t0")
    assert made.fail("g0", "fault") is None
    assert not made.orders
    made.ask(segment, "t1")
    assert train(made, segment).errors == []


def test_an_idle_group_that_ends_costs_nothing() -> None:
    made = dispatcher()
    made.ask(lineage(1)[0], "t0")
    assert made.remove_group("g0", "gone") is None
    assert made.groups_to_start() == [1]


def test_a_lost_state_is_trained_again_from_the_nearest_kept_ancestor() -> None:
    made = dispatcher(num_groups=2)
    one, two, three, four = lineage(0, "abcd")
    for segment, kept in ((one, True), (two, False), (three, True)):
        made.add_done(segment, kept)
    made.give(three, "t0")
    made.kept.add(one.key)
    made.ask(four, "t0")
    assert made.assign("g0", 0.0).segment == four
    made.state_lost("g0", three.key, "damaged")
    made.ask(four, "t1")
    assert [order.segment for order in made.ready()] == [two]
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
    assert made.assign("g0", 0.0).segment == two
    made.leave("t0")
    made.state_lost("g0", one.key, "damaged")
    assert set(made.orders) == {one.key, sibling.key}
    train(made, one)
    train(made, sibling)


def test_who_fails_after_its_state_was_lost_to_another_one_gets_it_trained_again() -> None:
    made = dispatcher(num_groups=2)
    parent, mine = lineage(0, "ab")
    theirs = lineage(0, "ac")[1]
    made.add_done(parent, state_kept=True)
    made.ask(mine, "t0")
    made.ask(theirs, "t1")
    assert made.assign("g0", 0.0).segment == mine
    assert made.assign("g1", 0.0).segment == theirs
    made.state_lost("g1", parent.key, "damaged")
    made.leave("t1")
    assert made.fail("g0", "fault") is None
    train(made, parent)
    train(made, mine)


def test_a_store_that_loses_every_state_ends_in_an_error() -> None:
    made = dispatcher(num_groups=1)
    one, two = lineage(0, "ab")
    made.add_done(one, state_kept=True)
    made.ask(two, "t0")
    for number in range(MAX_FAILURES):
        assert made.assign("g0", 0.0).segment == two
        given_up = made.state_lost("g0", one.key, f"damaged {number}")
        if given_up is None:
            train(made, one)
    assert given_up is not None and given_up.errors == ["damaged 0", "damaged 1"]


def test_ancestors_that_nobody_has_told_of_are_asked_for() -> None:
    made = dispatcher()
    one, two, three = lineage(0, "abc")
    assert made.missing_ancestor(three) == two.key
    made.add_done(two, state_kept=False)
    assert made.missing_ancestor(three) == one.key
    made.add_done(one, state_kept=True)
    assert made.missing_ancestor(three) is None
    made.ask(three, "t0")
    assert [order.segment for order in made.ready()] == [two]


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
        made.dropped(unneeded["t1"])
        dropped += unneeded["t1"]
        assert dropped == unneeded["t1"]
    assert made.kept == {"root", segments[1].key, segments[2].key, segments[4].key}


def test_a_trial_that_begins_anew_finds_the_state_where_it_was() -> None:
    """Its process was lost: it walks from the first segment again, and has nothing trained twice."""
    made = dispatcher()
    segments = lineage(1, "bbb")
    for segment in segments[:3]:
        made.ask(segment, "t0")
        train(made, segment)
        made.dropped(made.give(segment, "t0"))
    for segment in segments[:3]:
        made.dropped(made.give(segment, "t0"))
        assert segments[2].key in made.kept
    assert not made.destinations
    made.ask(segments[3], "t0")
    assert [order.segment for order in made.ready()] == segments[3:]
    train(made, segments[3])
    assert made.give(segments[3], "t0") == [segments[2].key]


def test_a_trial_that_turns_off_on_its_way_back_needs_the_state_no_more() -> None:
    made = dispatcher()
    (first, *_, last), (_, other) = lineage(1, "bb"), lineage(1, "c")
    for segment in lineage(1, "bb"):
        made.ask(segment, "t0")
        train(made, segment)
        made.dropped(made.give(segment, "t0"))
    made.ask(other, "t1")
    train(made, other)
    assert made.give(first, "t0") == []
    assert made.give(other, "t0") == [last.key]


def test_groups_are_started_for_distinct_work_within_the_maximum() -> None:
    made = dispatcher(max_groups=2, num_groups=0)
    assert made.groups_to_start() == []
    for number, name in enumerate("abc"):
        made.ask(lineage(0, name)[0], f"t{number}")
    assert made.groups_to_start() == [1, 1]
    made.add_group("g0", 1)
    assert made.groups_to_start() == [1]
    made.add_group("g1", 1)
    assert made.groups_to_start() == []
    assert made.group_to_stop() is None


def test_a_group_without_work_makes_room_for_another_size() -> None:
    made = dispatcher(max_groups=1, num_groups=1)
    single, pair = lineage(1)[0], lineage(0, "a", second_workers=2)[0]
    made.ask(single, "t0")
    made.ask(pair, "t1")
    assert made.group_to_stop() is None  # it has work of its own
    assert not made.others_wait(1) and made.others_wait(3)
    train(made, single)
    assert made.group_to_stop() == "g0"
    assert made.others_wait(1) and not made.others_wait(2)
    made.remove_group("g0", "not needed")
    assert made.groups_to_start() == [2]


class Checked(Dispatcher):
    """A dispatcher whose answers are compared with those of a look at everything."""

    def _waiting(self, num_workers: int | None = None) -> list[Order]:
        orders = [
            order
            for order in self.orders.values()
            if order.group is None
            and order.segment.parent in self.kept
            and num_workers in (None, order.segment.num_workers)
        ]
        return sorted(orders, key=lambda order: (-len(order.waiters), order.number))

    def assign(self, name: str, now: float) -> Order | None:
        group = self.groups[name]
        others = [g for g in self.groups.values() if g.num_workers == group.num_workers and g.order is None]
        theirs = {g.held for g in others} - {group.held}
        orders = [order for order in self._waiting(group.num_workers) if order.segment.parent not in theirs]
        best = min(orders, key=lambda o: (-len(o.waiters), o.segment.parent != group.held, o.number), default=None)
        assert self.ready(group.num_workers) == self._waiting(group.num_workers)
        assigned = super().assign(name, now)
        assert assigned is None or assigned is best
        lingering = group.free_since is not None and now - group.free_since < LINGER_SECONDS
        assert assigned is not None or best is None or lingering
        return assigned

    def groups_to_start(self) -> list[int]:
        assert self.ready() == self._waiting()
        idle = Counter(group.num_workers for group in self.groups.values() if group.order is None)
        wanted = []
        for order in self._waiting():
            size = order.segment.num_workers
            idle[size] -= 1
            wanted += [size] * (idle[size] < 0)
        started = super().groups_to_start()
        assert started == wanted[: self.max_groups - len(self.groups)]
        return started

    def give(self, segment: Segment, trial: str) -> list[str]:
        passed = {self.positions.get(trial, segment.parent), *self.told_ahead.get(trial, ())}
        parent = segment.parent
        while parent in self.done:
            passed.add(parent)
            parent = self.done[parent].parent
        unneeded = super().give(segment, trial)
        told = (key for ahead in self.told_ahead.values() for key in ahead)
        needed = {*self.positions.values(), *told, *(order.segment.parent for order in self.orders.values())}
        assert set(unneeded) == {
            key
            for key in (passed & self.done.keys() & self.kept) - needed
            if self.done[key].stage == SECOND_STAGE or self.done[key].end_step < self.keep_first_stage_from
        }
        return unneeded

    def leave(self, trial: str, last: str | None = None) -> list[str]:
        unneeded = super().leave(trial, last)
        assert all(order.waiters or order.group for order in self.orders.values())
        assert not any(trial in order.waiters for order in self.orders.values())
        assert not any(trial in trials for trials in self.thinking.values())
        assert trial not in self.told_ahead
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
        self.num_groups = 0

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
        return [group.name for group in self.made.groups.values() if group.order is not None]

    def ask(self) -> None:
        trial = self.rng.choice(self.thinking())
        if not self.todo[trial]:
            self.end(trial, "finished")
            return
        segment = self.todo[trial].pop(0)
        if segment.key in self.ahead[trial]:
            self.last[trial] = segment.key
        elif segment.key in self.made.done:
            self.give(trial, segment)
        else:
            assert self.made.missing_ancestor(segment) is None
            self.made.ask(segment, trial)
            self.waiting[trial] = segment

    def give(self, trial: str, segment: Segment) -> None:
        self.waiting.pop(trial, None)
        unneeded = self.made.give(segment, trial)
        self.last[trial] = segment.key
        self.ahead[trial] = set(self.made.tell_ahead(trial)) if self.rng.random() < 0.7 else set()
        self.drop(unneeded)

    def end(self, trial: str, how: str) -> None:
        self.ended[trial] = how
        self.drop(self.made.leave(trial, self.last.get(trial)))

    def drop(self, unneeded: list[str]) -> None:
        """States go, but none where a trial is or where it has ended."""
        assert len(set(unneeded)) == len(unneeded)
        assert not set(self.last.values()) & set(unneeded)
        for key in unneeded:
            lost = self.made.done[key]
            assert lost.stage == SECOND_STAGE or lost.end_step < self.made.keep_first_stage_from
        self.made.dropped(unneeded)
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
        key = self.made.groups[name].order
        assert key is not None
        segment = self.made.orders[key].segment
        kind = self.rng.choice(["order", "group", "state"])
        self.failures[key] += bool(self.made.orders[key].waiters)
        if kind == "state" and segment.parent != "root":
            self.stored.discard(segment.parent)
            given_up = self.made.state_lost(name, segment.parent, "damaged")
        elif kind == "group":
            given_up = self.made.remove_group(name, "lost")
        else:
            given_up = self.made.fail(name, "fault")
        if given_up is not None:
            self.give_up(given_up)

    def give_up(self, order: Order) -> None:
        """As the engine does: descendants that wait for a state which will not come fail with it."""
        assert order.segment.key in self.failures
        for trial, segment in list(self.waiting.items()):
            if segment.key == order.segment.key:
                del self.waiting[trial]
                self.end(trial, "failed")
        for other in self.made.waiting_for(order.segment.key):
            self.failures[other.segment.key] += 1
            self.give_up(self.made.withdraw(other.segment.key))

    def leave(self) -> None:
        self.num_leaves -= 1
        alive = [trial for trial in self.todo if trial not in self.ended]
        trial = self.rng.choice(alive)
        self.waiting.pop(trial, None)
        self.end(trial, "stopped")

    def hand_out(self) -> None:
        """As the engine does after everything that happens."""
        for group in sorted(self.made.groups.values(), key=lambda group: group.name):
            if group.order is None:
                order = self.made.assign(group.name, self.now)
                if order is not None:
                    in_flight = [g.order for g in self.made.groups.values() if g.order is not None]
                    assert in_flight.count(order.segment.key) == 1
                    assert order.segment.parent in self.stored
                    assert order.segment.num_workers == group.num_workers
        for size in self.made.groups_to_start():
            self.num_groups += 1
            self.made.add_group(f"g{self.num_groups}", size)
        assert len(self.made.groups) <= self.made.max_groups
        in_the_way = self.made.group_to_stop()
        if in_the_way is not None:
            self.made.remove_group(in_the_way, "not needed")


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
    assert not search.made.orders
    assert search.stored == search.made.kept


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
    assert all(order.group is not None for order in search.made.orders.values())


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
    assert all(order.group is not None for order in search.made.orders.values())


def test_what_was_told_ahead_is_kept_until_the_trial_is_heard_of_again() -> None:
    made, walk = dispatcher(), lineage(0, "abcd")
    for segment in walk:
        made.ask(segment, "before")
        train(made, segment)
        made.give(segment, "before")
    assert made.give(walk[0], "t0") == []
    assert made.tell_ahead("t0") == [segment.key for segment in walk[1:]]
    assert made.leave("before") == []
    # It goes its own way from the second one, of which nobody was told.
    own = lineage(0, "abe")[2]
    assert own.parent == walk[1].key
    made.ask(own, "t0")
    train(made, own)
    assert made.give(own, "t0") == sorted([walk[0].key, walk[1].key, walk[2].key])
    assert made.tell_ahead("t0") == []
    # Two ways lead on from there now.
    made.give(walk[0], "t1")
    assert made.tell_ahead("t1") == [walk[1].key]
    made.leave("t1", walk[1].key)
    assert made.positions["t1"] == walk[1].key


def test_who_leaves_keeps_nothing_of_which_he_was_told() -> None:
    made, walk = dispatcher(), lineage(0, "abc")
    for segment in walk:
        made.add_done(segment, state_kept=True)
    made.give(walk[0], "t0")
    made.tell_ahead("t0")
    assert made.leave("t0", walk[0].key) == [segment.key for segment in walk[1:]]


def test_a_trial_that_was_lost_keeps_the_furthest_state_of_which_it_was_told() -> None:
    made, walk = dispatcher(), lineage(0, "abcd")
    for segment in walk:
        made.add_done(segment, state_kept=True)
    made.give(walk[0], "t0")
    made.tell_ahead("t0")
    made.dropped(made.give(walk[0], "t0"))  # a new process begins anew
    assert walk[-1].key in made.kept


def test_an_engine_that_was_lost_keeps_the_furthest_state_though_it_does_not_know_the_way_there() -> None:
    made, walk = dispatcher(keep_from=9), lineage(2, "abc")
    for segment in walk[3:]:  # what a trial asks for makes known no more than one state to start from
        made.add_done(segment, state_kept=True)
    made.give(walk[4], "t0")
    for segment in walk[:3]:  # a new process of the trial begins anew
        made.add_done(segment, state_kept=True)
        made.dropped(made.give(segment, "t0"))
        assert walk[4].key in made.kept


def test_trials_that_come_again_find_the_last_states_and_those_before_go() -> None:
    """Ray Tune names them anew; nothing of the names before may keep a state."""
    made, (first, second) = dispatcher(), lineage(0, "ab")
    for segment in (first, second):
        made.ask(segment, "before")
        train(made, segment)
        made.hold("before", segment.key)
        made.dropped(made.give(segment, "before"))
    made.leave("before")
    made.forget_all()
    assert second.key in made.kept
    unneeded = [key for segment in (first, second) for key in made.give(segment, "after")]
    assert second.key in made.kept and second.key not in unneeded
    after = lineage(0, "abc")[2]
    made.ask(after, "after")
    train(made, after)
    assert made.give(after, "after") == [second.key]
