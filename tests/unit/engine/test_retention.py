"""Which states are kept, and for whom."""

from __future__ import annotations

from dispatching import dispatcher, lineage, train


def test_a_state_is_dropped_once_every_trial_is_two_further_unless_a_branch_may_start_there() -> None:
    made = dispatcher(keep_from=2)
    segments = lineage(3, "abc")
    dropped: dict[str, str] = {}
    for segment in segments:
        made.ask(segment, "t0")
        made.ask(segment, "t1")
        train(made, segment)
        assert made.give(segment, "t0") == []  # t1 is not there yet
        unneeded = made.give(segment, "t1")
        made.drop(unneeded)
        dropped |= dict.fromkeys(unneeded, segment.key)
    # The second and third are where branches start.
    assert dropped == {segments[0].key: segments[2].key, segments[3].key: segments[5].key}
    assert made.end_trial("t0", segments[5].key) == []
    assert made.end_trial("t1", segments[5].key) == [segments[4].key]


def test_a_trunk_has_a_second_state_to_go_on_from() -> None:
    """The newest one turns out damaged: one segment is trained again, not all of stage one."""
    made = dispatcher(keep_from=99)
    *trunk, following = lineage(6, "")
    for segment in trunk:
        made.ask(segment, "t0")
        train(made, segment)
        made.drop(made.give(segment, "t0"))
    made.ask(following, "t0")
    made.drop([trunk[-1].key])
    made.ask(following, "t0")
    assert [order.segment for order in made.book.in_sequence()] == [trunk[-1]]


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
    assert made.give(segments[3], "t0") == [segments[1].key]


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
    assert made.give(own, "t0") == sorted([walk[0].key, walk[2].key])
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
    for segment in walk[:3]:  # a new process of the trial begins at step 0
        made.add_done(segment, state_kept=True)
        made.drop(made.give(segment, "t0"))
        assert walk[4].key in made.states.kept


def test_trials_that_come_again_find_the_last_states_and_those_before_go() -> None:
    """Ray Tune gives them other names; nothing under the old names may keep a state."""
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
    assert made.give(after, "after") == [first.key]
