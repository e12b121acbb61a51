"""What becomes of segments whose trials leave, that fail, or whose states are lost."""

from __future__ import annotations

from dispatching import dispatcher, lineage, start, train

from latentsync_ray.config.recipe import SECOND_STAGE
from latentsync_ray.core.segment import Segment
from latentsync_ray.engine.decisions import (
    StartGroup,
)
from latentsync_ray.engine.orders import MAX_FAILURES, MAX_LOSSES


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
    assert made.give(four, "t0") == [one.key]
    assert made.end_trial("t2", branch.key) == [two.key]
    assert made.end_trial("t0", four.key) == [three.key]


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
