"""What a journal keeps, and what it makes of damage."""

from pathlib import Path

import pytest

from latentsync_ray.config.domains import Choice
from latentsync_ray.core.segment import Segment
from latentsync_ray.core.transition import Observation
from latentsync_ray.report.summary import Cloning
from latentsync_ray.search.entries import Decision, Exploit, Suggestion
from latentsync_ray.search.journal import Journal
from latentsync_ray.search.pointer import Pointer
from latentsync_ray.store import Store

FOLDER = "searches/demo/decisions"
VALUES = {"second_stage.optimizer.lr": 1e-4}
STOP = Decision(0, 0, 20, VALUES, "STOP")
POINTER = Pointer(Segment("root", "first_stage", {}, 20, 0, 40), (Observation(40, {"val/recon": 0.25}),))
CLONE = Decision(
    3, 1, 60, VALUES, "NOOP", Exploit(2, "abc", {"second_stage.optimizer.lr": 1e-4}, POINTER, 40.0, 30.0)
)


def test_an_entry_belongs_to_a_search_a_trial_its_generation_and_a_step(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    Journal(store, FOLDER).write(STOP)
    journal = Journal(store, FOLDER)
    assert journal.replaying
    assert journal.lookup(0, 0, 20, VALUES) == STOP
    assert not journal.replaying
    assert [journal.lookup(*place, VALUES) for place in ((0, 0, 40), (0, 1, 20), (1, 0, 20))] == [None] * 3
    assert Journal(store, "searches/other/decisions").lookup(0, 0, 20, VALUES) is None


def test_exploits_and_suggestions_are_read_as_they_were_written(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    journal = Journal(store, FOLDER)
    journal.write(CLONE)
    journal.write_suggestion(Suggestion(7, {"transition.at_step": 40}))
    space = {"transition.at_step": Choice((40, 80))}
    again = Journal(store, FOLDER)
    assert again.lookup(3, 1, 60, VALUES) == CLONE
    assert again.suggestion(7, space) == {"transition.at_step": 40} and again.suggestion(6, space) is None
    assert again.clonings() == [Cloning(3, 60, source=2, source_step=40, key="abc", parameters=VALUES)]


def test_an_entry_that_was_made_for_other_values_is_never_applied(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    first = Journal(store, FOLDER)
    first.write(STOP)
    first.write_suggestion(Suggestion(7, {"transition.at_step": 40}))
    journal = Journal(store, FOLDER)
    assert journal.lookup(0, 0, 20, {"second_stage.optimizer.lr": 2e-4}) is None
    assert journal.suggestion(7, {"transition.at_step": Choice((80, 120))}) is None
    assert [notice.partition(": ")[2] for notice in journal.notices] == [
        f"was made for other values of trial {number}; this is decided again" for number in (0, 7)
    ]
    assert not journal.replaying


def test_a_later_decision_for_the_same_place_replaces_the_first(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    journal = Journal(store, FOLDER)
    journal.write(Decision(0, 0, 20, VALUES, "PAUSE"))
    journal.write(Decision(0, 0, 20, VALUES, "CONTINUE"))
    found = Journal(store, FOLDER).lookup(0, 0, 20, VALUES)
    assert found is not None and found.decision == "CONTINUE"


@pytest.mark.parametrize("content", [b"", b'{"trial": 0, "glob', b"[]", b"null", b"\xff\xfe", None])
def test_a_damaged_entry_is_one_line_and_decided_anew(content: bytes | None, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    Journal(store, FOLDER).write(STOP)
    (file,) = (tmp_path / FOLDER).iterdir()
    file.write_bytes(file.read_bytes().replace(b"STOP", b"STAP") if content is None else content)
    journal = Journal(store, FOLDER)
    assert journal.lookup(0, 0, 20, VALUES) is None
    (notice,) = journal.notices
    assert notice == f"{file}: is no whole journal entry; this is decided again"


def test_what_a_kill_leaves_is_ignored(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    Journal(store, FOLDER).write(STOP)
    (tmp_path / FOLDER / "00000-000-000000040.json.77.tmp").write_text('{"trial"')
    journal = Journal(store, FOLDER)
    assert journal.lookup(0, 0, 20, VALUES) == STOP and not journal.notices
