"""The report page: complete, well-formed and self-contained, whatever became of the trials."""

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from latentsync_ray.config.domains import Choice, Grid
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.report.page import report_html
from latentsync_ray.report.trials import TrialLog

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


def results(first: int, second: int, branch: object, value: float = 1.0) -> list[dict[str, Any]]:
    """Boundaries of 20 steps in stage one, with keys that trials have in common, and of 10 in stage two."""
    made = []
    for step in [*range(20, first + 1, 20), *range(first + 10, first + second + 1, 10)]:
        stage = "first_stage" if step <= first else "second_stage"
        metrics = {f"val/{term}": value / step for term in ("objective", "recon", "sync", "lpips", "trepa")}
        key = f"key-{step}" if step <= first else f"key-{branch}-{step}"
        place = {"global_step": step, "stage": stage, "second_stage_step": max(0, step - first), "key": key}
        made.append({**metrics, **place, "cached": False})
    return made


def render(trials: list[TrialLog], best: int | None, **search: Any) -> str:
    summary = {
        "best": None if best is None else {"trial": best},
        "trials": len(trials),
        "trials_by_status": {"finished": 1, "stopped": 0, "diverged": 0, "failed": 0},
        "steps_trained": 1234,
        "steps_distinct": 2345,
        "steps_without_sharing": 5678,
        "sharing_factor": 2.42,
        "gpu_seconds": 100.0,
        "wall_seconds": 3725.4,
        "notices": [],
    }
    return report_html(SearchConfig("recipe", "a search", **search), {t.number: t for t in trials}, summary)


def grid_trials() -> list[TrialLog]:
    trials = []
    for number in range(8):
        at_step, lr, modules = (40, 80)[number & 1], (1e-4, 3e-3)[number >> 1 & 1], (None, ["attn2"])[number >> 2]
        parameters = {
            "transition.at_step": at_step,
            "second_stage.optimizer.lr": lr,
            "second_stage.trainable_modules": modules,
        }
        done = number % 3 == 0
        status = "finished" if done else "stopped"
        trials.append(TrialLog(number, parameters, results(at_step, 40 if done else 20, number), status))
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
    trials = [TrialLog(number, {}, results(40, 20, number)) for number in range(2)]
    for trial in trials:
        trial.status = "finished"
        for result in trial.results:
            result["key"] += f"-{trial.number}"
    assert [trace["x"] for trace in Page(render(trials, best=0)).traces("lines")][:2] == [[20, 40]] * 2


def test_one_trial_without_parameters():
    page = Page(render([TrialLog(0, {}, results(40, 20, 0), "finished")], best=0))
    assert page.headings == ["Stage tree", "Validation terms of trial 0", "Trials"]
    assert [trace["x"] for trace in page.traces("lines")] == [[20, 40], [40, 50, 60]]


def test_second_stage_not_reached():
    page = Page(render([TrialLog(0, {}, results(60, 0, 0), "stopped")], best=0))
    assert [trace["x"] for trace in page.traces("lines")] == [[20, 40, 60], []]
    assert page.rows[1][:5] == ["0", "stopped", "0.01667", "-", "60"]


def test_failed_trials_and_trials_without_results():
    names = {"second_stage.optimizer.lr": {"loguniform": [1e-5, 1e-2]}}
    trials = [TrialLog(number, {"second_stage.optimizer.lr": 10.0 ** (number - 5)}) for number in range(4)]
    trials[0].results, trials[0].status = results(40, 20, 0), "finished"
    trials[1].results, trials[1].status = results(40, 10, 1), "failed"
    trials[1].results[-1]["val/objective"] = float("nan")
    trials[2].status, trials[2].error = "failed", "RuntimeError: <script>no</script> & so on"
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
    page = Page(render([TrialLog(0, {}, status="failed", error="RuntimeError: gone")], best=None))
    assert page.headings == ["Trials"]
    assert page.rows[1][-1] == "RuntimeError: gone"


@pytest.mark.parametrize(("mode", "good"), [("min", 0.2), ("max", 0.8)])
def test_a_diverged_branch_does_not_flatten_the_others(mode, good):
    trials = [TrialLog(number, {}, results(40, 20, number), "finished") for number in range(4)]
    bad = 1000.0 if mode == "min" else -1000.0
    for trial in trials:
        for result in trial.results:
            result["val/objective"] = 0.5
        trial.results[-1]["val/objective"] = bad if trial.number == 3 else good
    low, high = Page(render(trials, best=0, mode=mode)).layouts[0]["yaxis"]["range"]
    assert low < 0.5 < high
    assert low < good < high
    assert high - low < 10
