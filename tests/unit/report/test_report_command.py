"""`latentsync-ray report`: the page of a search, from its folder alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from reports import (
    FOLDER,
    PageParts,
    make_recipe,
    make_search,
    make_summary,
    make_trial,
    make_trials,
    make_written,
    publish_ends,
)
from test_page import ANSWER

from latentsync_ray.config.errors import UserError
from latentsync_ray.core.forecast import Forecast, Span
from latentsync_ray.engine.budget import Exceeded
from latentsync_ray.report.__main__ import main
from latentsync_ray.report.origin import write_origin
from latentsync_ray.report.report import write_page, write_report
from latentsync_ray.report.stored import Progress, Written, read_stored, write_stored
from latentsync_ray.report.summary import Cloning
from latentsync_ray.report.trials import TrialResult, TrialStatus
from latentsync_ray.report.trials_file import write_trials
from latentsync_ray.store import Store
from latentsync_ray.store.searches import Phase, Searches


def begin(root: Path, folder: str = FOLDER) -> Store:
    """A store with a search that has begun, as `search.run` leaves it."""
    store = Store(str(root))
    write_origin(store, folder, make_search(), make_recipe(), "latentsync-ray tune a.yaml")
    write_trials(store, folder, [], None, 0)
    return store


def test_the_page_of_an_ended_search_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, trials = begin(tmp_path), make_trials()
    publish_ends(store, trials)
    write_report(store, FOLDER, make_recipe(), make_summary(trials))
    page = tmp_path / FOLDER / "report.html"
    before = page.read_text()
    page.unlink()
    assert main([str(tmp_path / FOLDER)]) == 0
    assert page.read_text() == before
    assert capsys.readouterr().out == f"report: {page}\n"
    assert list((tmp_path / FOLDER).glob("*.tmp")) == []


@pytest.mark.parametrize("progress", [Progress.RUNNING, Progress.INTERRUPTED, Progress.FAILED])
def test_the_page_of_a_search_that_has_not_ended(progress: Progress, tmp_path: Path) -> None:
    store = begin(tmp_path)
    trials = [make_trial(0, 40, 1e-4), make_trial(1, 40, 2e-4, TrialStatus.RUNNING, 20), TrialResult(2, {})]
    write_page(store, FOLDER, make_written(trials, progress))
    output = tmp_path / "new" / "page.html"
    assert main([str(tmp_path / FOLDER), "--output", str(output)]) == 0
    assert output.read_bytes() == (tmp_path / FOLDER / "report.html").read_bytes()
    assert PageParts(output.read_text()).cells("status") == ["finished", "running", "running"]
    # For the store it has begun and not ended: nothing of it is given away.
    assert [search.phase for search in Searches(store).all(now=1e12)] == [Phase.INTERRUPTED]


def test_what_is_kept_is_read_back_whole(tmp_path: Path) -> None:
    store, trials = begin(tmp_path), make_trials()
    summary = make_summary(trials)
    values = {
        "answer": ANSWER,
        "stopped_by": Exceeded("gpu_hours", 2.0, 1.0),
        "clonings": (Cloning(1, 40, 0, 60, "k", {"second_stage.optimizer.lr": 1e-4}),),
        "inputs": {"syncnet_accuracy": 0.9},
        "plan": Forecast(8, Span(1, 2, 3), Span(1, 1, 1), Span(0, 1, 2), Span(3, 3, 3), 40, wall_hours=Span(1, 2, 3)),
        "notices": ("a worker was lost",),
    }
    written = Written(
        type(summary)(**{**vars(summary), **values}), Progress.INTERRUPTED, make_written([]).at, "an error"
    )
    write_stored(store, FOLDER, written)
    assert read_stored(store, FOLDER, summary.search) == written


def test_searches_of_several_stores_share_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = []
    for name in ("one", "two"):
        store = begin(tmp_path / name)
        write_report(store, FOLDER, make_recipe(), make_summary(make_trials()))
        places.append(str(tmp_path / name / FOLDER))
    monkeypatch.chdir(tmp_path)
    assert main(places) == 0
    page = PageParts((tmp_path / "report.html").read_text())
    assert len(page.cells("trial")) == 16 and page.cells("trial")[:2] == ["A 3", "B 3"]


def test_a_folder_that_is_no_search_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be a folder that a search has printed"):
        main([str(tmp_path)])
    with pytest.raises(UserError, match=r"search\.yaml: must say what was searched, is missing"):
        main([str(tmp_path / FOLDER)])
    begin(tmp_path)
    with pytest.raises(UserError, match=r"has no report\.json; run the search's command again"):
        main([str(tmp_path / FOLDER)])


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    write_page(begin(tmp_path), FOLDER, make_written(make_trials()))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--output: must be a file that can be written"):
        main([str(tmp_path / FOLDER), "--output", str(tmp_path / "file" / "page.html")])
