"""The report page: complete, well-formed and self-contained, whatever became of the trials."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from reports import (
    FOLDER,
    RATE,
    WRITTEN,
    PageParts,
    make_recipe,
    make_search,
    make_summary,
    make_trial,
    make_trials,
    publish_ends,
    with_metric,
)

from latentsync_ray.core.baselines import Role
from latentsync_ray.report.answer import Answer, Difference, NextCommand
from latentsync_ray.report.compose import page_of, reported
from latentsync_ray.report.origin import write_origin
from latentsync_ray.report.page import page_html
from latentsync_ray.report.stored import Progress, Written
from latentsync_ray.report.trials import TrialResult, TrialStatus
from latentsync_ray.store import Store

ANSWER = Answer(
    best=0,
    tied=(0, 3),
    num_pairs=12,
    num_clips=12,
    num_groups=1,
    differences={Role.NEVER: Difference(-0.12, -0.15, -0.09)},
    parameters=(),
    sentences=("Leave stage one at step 40.", "Against never leaving: -12 % [-15, -9]."),
    commands=(NextCommand("train for real", "latentsync-ray train 'a & b'"),),
    policies=("transition: {at_step: 40}\n",),
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(str(tmp_path))
    write_origin(made, FOLDER, make_search(), make_recipe(), "latentsync-ray tune <here>.yaml")
    return made


def render(store: Store, trials: list[TrialResult], progress: Progress = Progress.ENDED, **changes: Any) -> str:
    summary = replace(make_summary(trials), **changes)
    written = Written(summary, progress, WRITTEN, "no <room>" if progress is Progress.FAILED else "")
    return page_html(page_of([reported(store, FOLDER, written)]))


def test_the_page_begins_with_the_answer_and_its_commands(store: Store) -> None:
    page = PageParts(render(store, make_trials(), answer=ANSWER))
    said = [page.text.index(text) for text in (*ANSWER.sentences, ANSWER.commands[0].command, ANSWER.policies[0])]
    assert said == sorted(said) and said[-1] < page.text.index("Quality against cost")
    titles = ["Answer", "Quality against cost", "Stage tree", "Curves", "Parameters", "Trials", "How it was made"]
    assert page.headings == titles


def test_nothing_is_loaded_from_elsewhere(store: Store) -> None:
    trials = make_trials()
    publish_ends(store, trials)
    html = render(store, trials)
    resources = PageParts(html).resources
    assert len(resources) == 1 + 4  # the icon; best, runner-up and two baselines
    assert all(resource.startswith("data:") for resource in resources)
    assert "default-src 'none'" in html and "@import" not in html and "url(" not in html.split("<script>")[0]


def test_pictures_are_of_the_best_the_runner_up_and_the_baselines(store: Store) -> None:
    trials = make_trials()
    publish_ends(store, trials)
    page = PageParts(render(store, trials))
    found = re.findall(r"(best|runner-up|never leaving stage one|the recipe as shipped) \(trial (\d+)\)", page.text)
    assert found == [
        ("best", "3"),
        ("runner-up", "0"),
        ("never leaving stage one", "6"),
        ("the recipe as shipped", "7"),
    ]
    assert "2.x" in page.text  # the environment of the best one's record


def test_the_table_has_finished_trials_first_and_the_best_at_the_top(store: Store) -> None:
    page = PageParts(render(store, make_trials()))
    assert page.cells("trial") == ["3", "7", "0", "6", "4", "1", "5", "2"]
    assert page.cells("status")[-1] == "diverged" and page.cells("error")[-1] == "it grew"
    assert page.cells("kind")[1] == "the recipe as shipped"


def test_the_source_of_a_search_is_there_to_be_copied(store: Store) -> None:
    page = PageParts(render(store, make_trials()))
    assert "latentsync-ray tune <here>.yaml" in page.text
    assert f"{store.root}/{FOLDER}/search.yaml" in page.text
    assert "report_every_steps: 20" in page.text and "at_step:" in page.text


@pytest.mark.parametrize(
    ("progress", "said"),
    [
        (Progress.RUNNING, "still running when this page was written"),
        (Progress.INTERRUPTED, "interrupted; the same command goes on"),
        (Progress.FAILED, "failed: no <room>"),
    ],
)
def test_a_search_that_has_not_ended_says_so(store: Store, progress: Progress, said: str) -> None:
    trials = [make_trial(0, 40, 1e-4, TrialStatus.RUNNING, 20), TrialResult(1, {RATE: 2e-4})]
    page = PageParts(render(store, trials, progress))
    assert said in page.text and "No trial has run to its end." in page.text
    assert page.cells("status") == ["running", "running"]
    assert len(page.traces("cost")[1]["x"]) == 1


def test_what_trials_say_is_text_and_no_markup(store: Store) -> None:
    error = "RuntimeError: <script>no</script> & so on"
    trials = [make_trial(0, 40, 1e-4), TrialResult(1, {RATE: "<b>"}, status=TrialStatus.FAILED, error=error)]
    html = render(store, trials)
    page = PageParts(html)
    assert page.cells("error") == ["", error] and page.cells(RATE) == ["1e-4", "<b>"]
    assert "<script>no" not in html and "&lt;b&gt;" in page.json["page-data"]["facts"]["1"]


def test_without_a_result_there_is_no_chart_and_no_script_for_any(store: Store) -> None:
    html = render(store, [TrialResult(0, {}, status=TrialStatus.FAILED, error="RuntimeError: gone")])
    page = PageParts(html)
    assert page.headings == ["Answer", "Trials", "How it was made"]
    assert page.cells("error") == ["RuntimeError: gone"] and len(html) < 50_000


def test_plotly_is_there_once(store: Store) -> None:
    assert render(store, make_trials()).count("plotly.js v") == 1


@pytest.mark.parametrize(("mode", "bad"), [("min", 1000.0), ("max", -1000.0)])
def test_a_diverged_branch_does_not_flatten_the_others(store: Store, mode: str, bad: float) -> None:
    trials = [
        with_metric(make_trial(n, step, 1e-4), objective=0.01 if n else bad) for n, step in enumerate((40, 60, 80))
    ]
    search = make_search(mode=mode)
    page = PageParts(render(store, trials, search=search, best=trials[1]))
    for chart in ("tree", "cost"):
        low, high = page.json[f"{chart}-data"]["layout"]["yaxis"]["range"]
        assert low < 0.01 < high and high - low < 1


def test_several_searches_are_set_side_by_side(store: Store) -> None:
    publish_ends(store, make_trials())
    one = reported(
        store, FOLDER, Written(replace(make_summary(make_trials()), answer=ANSWER), Progress.ENDED, WRITTEN)
    )
    other = Written(make_summary([make_trial(0, 60, 1e-4)], make_search(name="b")), Progress.RUNNING, WRITTEN)
    page = PageParts(page_html(page_of([one, reported(store, FOLDER, other)])))
    assert ANSWER.sentences[0] in page.text and "B: still running" in page.text
    assert re.findall(r"([AB]): best \(trial (\d+)\)", page.text) == [("A", "3")]
    assert page.cells("trial")[:3] == ["A 3", "A 7", "B 0"]
    ends = page.traces("tree")[-1]
    assert set(ends["customdata"]) == set(page.cells("trial"))
    assert len({colour for colour, label in zip(ends["marker"]["color"], ends["customdata"], strict=True)}) == 2
