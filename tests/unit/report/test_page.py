"""The report page: complete, well-formed and self-contained, whatever became of the trials."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from latentsync_ray.config.domains import Choice, Grid
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.report.page import page_html
from latentsync_ray.report.summary import Summary
from latentsync_ray.report.trials import Boundary, TrialResult, TrialStatus

VOID = {"meta", "br", "link", "img", "input", "hr"}
GRID = {
    "transition.at_step": Grid((40, 80)),
    "second_stage.optimizer.lr": Grid((1e-4, 3e-3)),
    "second_stage.trainable_modules": Choice((None, ["attn2"])),
}


class Page(HTMLParser):
    """Checks that tags are balanced, and keeps the table's cells and what the page would fetch."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.headings: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []
        starts = [match.end() for match in re.finditer(r'Plotly\.newPlot\(\s*"\w+",\s*', text)]
        decoded = [json.JSONDecoder().raw_decode(text, start) for start in starts]
        self.figures = [traces for traces, _ in decoded]
        self.layouts = [json.JSONDecoder().raw_decode(text, text.index("{", end))[0] for _, end in decoded]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["td"]:
            self.rows[-1][-1] += data
        if self.open[-1:] == ["h2"]:
            self.headings.append(data)

    def traces(self, mode: str) -> list[dict[str, Any]]:
        """Of the first figure, the stage tree; without the entries of its legend."""
        return [trace for trace in self.figures[0] if trace["mode"] == mode and trace["x"] != [None]]


def results(first: int, second: int, branch: object, value: float = 1.0) -> tuple[Boundary, ...]:
    """Boundaries of 20 steps in stage one, with keys that trials have in common, and of 10 in stage two."""
    made: list[Boundary] = []
    for step in [*range(20, first + 1, 20), *range(first + 10, first + second + 1, 10)]:
        stage = "first_stage" if step <= first else "second_stage"
        metrics = {f"val/{term}": value / step for term in ("objective", "recon", "sync", "lpips", "trepa")}
        key = f"key-{step}" if step <= first else f"key-{branch}-{step}"
        parent = made[-1].key if made else "root"
        made.append(Boundary(key, parent, stage, step, max(0, step - first), metrics))
    return tuple(made)


def with_objective(point: Boundary, value: float) -> Boundary:
    return replace(point, metrics={**point.metrics, "val/objective": value})


def render(trials: list[TrialResult], best: int | None, **search: Any) -> str:
    summary = Summary(
        search=SearchConfig("recipe", "a search", **search),
        trials=tuple(trials),
        best=None if best is None else trials[best],
        steps_trained=1234,
        steps_distinct=2345,
        steps_without_sharing=5675,
        steps_unfinished=0,
        stopped_by=None,
        worker_seconds=100.0,
        train_seconds=0.0,
        validate_seconds=0.0,
        wall_seconds=3725.4,
        clonings=(),
        inputs={},
        notices=(),
    )
    return page_html(summary)


def grid_trials() -> list[TrialResult]:
    trials = []
    for number in range(8):
        at_step, lr, modules = (40, 80)[number & 1], (1e-4, 3e-3)[number >> 1 & 1], (None, ["attn2"])[number >> 2]
        parameters = {
            "transition.at_step": at_step,
            "second_stage.optimizer.lr": lr,
            "second_stage.trainable_modules": modules,
        }
        done = number % 3 == 0
        status = TrialStatus.FINISHED if done else TrialStatus.STOPPED
        trials.append(TrialResult(number, parameters, results(at_step, 40 if done else 20, number), status))
    return trials


def test_search():
    text = render(grid_trials(), best=3, param_space=GRID)
    page = Page(text)

    assert page.fetched == []
    assert page.headings == ["Stage tree", "Parameters", "Validation terms of trial 3", "Trials"]
    assert len(page.figures[1]) == 3  # one panel a parameter
    assert len(page.figures[2]) == 2 * 4  # two stages of four terms
    # Those that ran to their end come first, the best of them at the top.
    assert [row[0] for row in page.rows[1:]] == ["3", "0", "6", "1", "5", "7", "2", "4"]
    assert {"1,234", "2.42", "1:02:05"} <= set(re.findall(r"<b>(.*?)</b>", text))


def test_stage_tree_draws_stage_one_once_and_every_branch_from_its_transition():
    page = Page(render(grid_trials(), best=3, param_space=GRID))

    trunk, *branches = page.traces("lines")
    assert trunk["x"] == [20, 40, 60, 80]
    assert sorted(branch["x"][0] for branch in branches) == [40] * 4 + [80] * 4
    assert len({branch["line"]["color"] for branch in branches}) == 2  # as many as learning rates
    symbols = [end["marker"]["symbol"] for end in page.traces("markers")]
    assert sorted(symbols) == ["circle"] * 2 + ["star"] + ["x"] * 5


def test_stage_one_that_differs_is_drawn_for_each():
    trials = [
        TrialResult(
            number,
            {},
            tuple(replace(point, key=f"{point.key}-{number}") for point in results(40, 20, number)),
            TrialStatus.FINISHED,
        )
        for number in range(2)
    ]
    assert [trace["x"] for trace in Page(render(trials, best=0)).traces("lines")][:2] == [[20, 40]] * 2


def test_one_trial_without_parameters():
    page = Page(render([TrialResult(0, {}, results(40, 20, 0), TrialStatus.FINISHED)], best=0))
    assert page.headings == ["Stage tree", "Validation terms of trial 0", "Trials"]
    assert [trace["x"] for trace in page.traces("lines")] == [[20, 40], [40, 50, 60]]


def test_second_stage_not_reached():
    page = Page(render([TrialResult(0, {}, results(60, 0, 0), TrialStatus.STOPPED)], best=0))
    assert [trace["x"] for trace in page.traces("lines")] == [[20, 40, 60], []]
    assert page.rows[1][:5] == ["0", "stopped", "0.01667", "-", "60"]


def test_failed_trials_and_trials_without_results():
    names = {"second_stage.optimizer.lr": {"loguniform": [1e-5, 1e-2]}}
    values = [{"second_stage.optimizer.lr": 10.0 ** (number - 5)} for number in range(4)]
    *points, last = results(40, 10, 1)
    trials = [
        TrialResult(0, values[0], results(40, 20, 0), TrialStatus.FINISHED),
        TrialResult(1, values[1], (*points, with_objective(last, float("nan"))), TrialStatus.FAILED),
        TrialResult(2, values[2], status=TrialStatus.FAILED, error="RuntimeError: <script>no</script> & so on"),
        TrialResult(3, values[3]),
    ]
    text = render(trials, best=0, param_space=names)
    page = Page(text)

    assert {row[0]: row[1] for row in page.rows[1:]} == {
        "0": "finished",
        "1": "failed",
        "2": "failed",
        "3": "running",
    }
    assert trials[2].error in [row[-1] for row in page.rows[1:]]
    assert "<script>no" not in text


def test_nothing_reported():
    page = Page(render([TrialResult(0, {}, status=TrialStatus.FAILED, error="RuntimeError: gone")], best=None))
    assert page.headings == ["Trials"]
    assert page.rows[1][-1] == "RuntimeError: gone"


@pytest.mark.parametrize(("mode", "good"), [("min", 0.2), ("max", 0.8)])
def test_a_diverged_branch_does_not_flatten_the_others(mode, good):
    bad = 1000.0 if mode == "min" else -1000.0
    trials = []
    for number in range(4):
        *points, last = (with_objective(point, 0.5) for point in results(40, 20, number))
        end = with_objective(last, bad if number == 3 else good)
        trials.append(TrialResult(number, {}, (*points, end), TrialStatus.FINISHED))
    low, high = Page(render(trials, best=0, mode=mode)).layouts[0]["yaxis"]["range"]
    assert low < 0.5 < high
    assert low < good < high
    assert high - low < 10
