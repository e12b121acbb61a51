"""The report of a running search: written at once, again and again, and when the search is interrupted or fails."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from reports import FOLDER, make_recipe, make_search, make_summary, make_trial

from latentsync_ray.config.errors import Terminated
from latentsync_ray.report.origin import write_origin
from latentsync_ray.report.stored import Progress, Written, read_stored
from latentsync_ray.report.summary import Summary
from latentsync_ray.report.trials import TrialStatus
from latentsync_ray.search.report_writer import ReportWriter
from latentsync_ray.store import Store
from latentsync_ray.store.patience import Patience


class Running:
    """A search that gets on whenever it is looked at."""

    def __init__(self, wanted: int = 1) -> None:
        self._left, self.looked_at = wanted, threading.Event()
        self.num_looks = 0

    def summary(self) -> Summary:
        self.num_looks += 1
        if self.num_looks == self._left:
            self.looked_at.set()
        return make_summary([make_trial(n, 40, 1e-4, TrialStatus.RUNNING) for n in range(self.num_looks)])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(str(tmp_path), Patience(0))
    write_origin(made, FOLDER, make_search(), make_recipe(), "")
    return made


def kept(store: Store) -> Written:
    return read_stored(store, FOLDER, make_search())


def test_a_page_is_there_from_the_start_and_follows_the_search(store: Store, tmp_path: Path) -> None:
    running = Running(wanted=3)
    with ReportWriter(store, FOLDER, running.summary, every_seconds=0.01):
        assert running.looked_at.wait(300)
    assert kept(store).progress is Progress.RUNNING and len(kept(store).summary.trials) >= 3
    assert "still running" in (tmp_path / FOLDER / "report.html").read_text()


@pytest.mark.parametrize(
    ("error", "progress", "said"),
    [
        (KeyboardInterrupt(), Progress.INTERRUPTED, "interrupted; the same command goes on"),
        (Terminated(), Progress.INTERRUPTED, "interrupted; the same command goes on"),
        (RuntimeError("a node is gone"), Progress.FAILED, "failed: a node is gone"),
        (ValueError(), Progress.FAILED, "failed: ValueError"),
    ],
)
def test_the_last_page_says_how_the_search_was_left(
    error: BaseException, progress: Progress, said: str, store: Store, tmp_path: Path
) -> None:
    running = Running()
    with pytest.raises(type(error)), ReportWriter(store, FOLDER, running.summary):
        running.looked_at.wait(300)
        raise error
    assert running.num_looks == 2 and len(kept(store).summary.trials) == 2
    assert kept(store).progress is progress
    assert said in (tmp_path / FOLDER / "report.html").read_text()


def test_a_storage_that_fails_costs_a_page_and_not_the_search(
    tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / FOLDER / "report.json").mkdir()
    with pytest.raises(KeyboardInterrupt), ReportWriter(store, FOLDER, Running().summary):
        raise KeyboardInterrupt
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(line.startswith("note: the report was not written: ") for line in lines)
