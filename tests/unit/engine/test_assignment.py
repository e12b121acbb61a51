"""Which group trains what, and which groups there are."""

from __future__ import annotations

import pytest
from dispatching import dispatcher, lineage, start, train

from latentsync_ray.engine.assignment import Phase
from latentsync_ray.engine.decisions import (
    LINGER_SECONDS,
    YIELD_SECONDS,
    DecideAgain,
    StartGroup,
    StopGroup,
    TrainOrder,
)
from latentsync_ray.engine.dispatcher import Dispatcher
from latentsync_ray.engine.messages import Branch


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


def trunk_and_idle_groups(steps: dict[str, int], num_idle: int, num_workers: int = 1) -> Dispatcher:
    """A group trains step 1 of stage one for trials that leave it at some steps; others are free since 0."""
    made = dispatcher(max_groups=9, num_groups=1, idle=60.0)
    for trial, step in steps.items():
        made.ask(lineage(1)[0], trial, Branch(step, num_workers))
    assert made.assignment.assign("group-1", 0.0) is not None
    for _ in range(num_idle):
        start(made, num_workers, now=0.0)
    return made


@pytest.mark.parametrize(
    ("steps", "near_steps", "num_stopped"),
    [
        ({"t0": 4, "t1": 4, "t2": 9}, 4, 1),  # two leave at 4, and the trunk keeps its own group
        ({"t0": 4, "t1": 4}, 4, 2),  # one of them can have the trunk's
        ({"t0": 4, "t1": 4, "t2": 9}, 3, 3),  # that is too far away
        ({"t0": 4, "t1": 4, "t2": 9}, 9, 1),  # all three leave, and one has the trunk's
        ({"t0": 1, "t1": 9}, 1, 2),  # at the end of what is trained now
        ({"t0": 0, "t1": 9}, 1, 2),  # a policy that may have spoken before can speak then
        ({"t0": 1}, 9, 3),  # a training by itself
    ],
)
def test_idle_groups_stay_for_a_branch_that_opens_soon(
    steps: dict[str, int], near_steps: float, num_stopped: int
) -> None:
    made = trunk_and_idle_groups(steps, num_idle=3)
    assert len(made.decide(60.0, check_idle=True, near_steps=near_steps)) == num_stopped
    assert len(trunk_and_idle_groups(steps, 3).decide(60.0, check_idle=True)) == 3  # nothing is near


def test_idle_groups_of_another_size_or_for_trials_that_are_gone_do_not_stay() -> None:
    steps = {"t0": 4, "t1": 4, "t2": 9}
    made = trunk_and_idle_groups(steps, num_idle=2, num_workers=2)
    assert made.decide(60.0, check_idle=True, near_steps=4) == []
    start(made, 1, now=0.0)
    assert made.decide(60.0, check_idle=True, near_steps=4) == [StopGroup("group-4")]
    made.end_trial("t0")
    assert made.decide(60.0, check_idle=True, near_steps=4) == [StopGroup("group-3")]
    made.end_trial("t1")
    assert made.decide(60.0, may_begin=False, check_idle=True, near_steps=4) == [StopGroup("group-2")]


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
