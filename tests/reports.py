"""Searches made by hand for tests of the report: trials over two stages, their records, and what their page holds."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from records import make_trained

from latentsync_ray.config.domains import Grid
from latentsync_ray.config.loading import load_recipe
from latentsync_ray.config.plain import Plain
from latentsync_ray.config.recipe import Recipe
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.core.baselines import Role
from latentsync_ray.core.segment import Segment
from latentsync_ray.engine.messages import EngineStatus, StageTotals
from latentsync_ray.report.stored import Progress, Written
from latentsync_ray.report.summary import Summary, summarise
from latentsync_ray.report.trials import Boundary, TrialResult, TrialStatus
from latentsync_ray.store import Store

FOLDER = "searches/s-1"
AT, RATE = "transition.at_step", "second_stage.optimizer.lr"
STEPS, RATES = (40, 80), (1e-4, 2e-4, 3.2e-3)
WRITTEN = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
STATUS = EngineStatus(
    trained={"first_stage": StageTotals(80), "second_stage": StageTotals(240)}, worker_seconds=100.0
)


def make_recipe() -> Recipe:
    """The demo's, with boundaries every 20 and 10 steps."""
    stages = {"first_stage.report_every_steps": 20, "second_stage.report_every_steps": 10}
    transition = {"transition.plateau": None, "transition.min_step": 0, "transition.max_step": 80}
    return load_recipe(Path(__file__).parents[1] / "configs" / "demo", {**stages, **transition})


def make_search(**values: Any) -> SearchConfig:
    """A grid of two thresholds and three learning rates."""
    space = {RATE: Grid(RATES), AT: Grid(STEPS)}
    return SearchConfig(**{"recipe": "r", "name": "a search", "param_space": space, **values})


def make_results(first: int, second: int, lr: float, level: float) -> tuple[Boundary, ...]:
    """Boundaries of 20 steps in stage one, which trials share, and of 10 in stage two.

    Args:
        first: Steps of stage one.
        second: Steps of stage two.
        lr: Of stage two.
        level: Of its metrics.
    """
    made: list[Boundary] = []
    for end in [*range(20, first + 1, 20), *range(first + 10, first + second + 1, 10)]:
        stage, start = ("first_stage", 0) if end <= first else ("second_stage", first)
        value = 1 / end if end <= first else level / end
        terms = {"val/objective": value, "val/recon": value / 2, "train/loss": 3 * value, "train/recon": 2 * value}
        begin = made[-1].global_step if made else 0
        segment = Segment(
            made[-1].key if made else "root", stage, {"lr": 0 if end <= first else lr}, begin, start, end
        )
        SEGMENTS[segment.key] = segment
        made.append(Boundary.after(segment, terms, end == first + second))
    return tuple(made)


SEGMENTS: dict[str, Segment] = {}
"""By key, all that were made."""


def make_trial(
    number: int,
    at_step: int,
    lr: float,
    status: TrialStatus = TrialStatus.FINISHED,
    second: int = 40,
    role: Role = Role.SEARCHED,
    error: str = "",
) -> TrialResult:
    """A trial that left stage one at a step; a greater rate is worse."""
    results = make_results(at_step, second, lr, 0.5 + 100 * lr)
    config: dict[str, Plain] = {RATE: lr, AT: at_step}
    asked = {point.key: 20 if point.stage == "first_stage" else 10 for point in results}
    shared = tuple(point.key for point in results if point.stage == "first_stage") if number else ()
    return TrialResult(number, config, results, status, error, asked, shared, role)


def make_trials() -> list[TrialResult]:
    """The whole grid with a trial of each end, and the baselines."""
    ends = iter([TrialStatus.FINISHED, TrialStatus.STOPPED, TrialStatus.DIVERGED] * 2)
    grid = [(at, lr, next(ends)) for at in STEPS for lr in RATES]
    trials = [
        make_trial(
            number, at, lr, status, 40 if status is TrialStatus.FINISHED else 20, error="it grew" * (lr > 1e-3)
        )
        for number, (at, lr, status) in enumerate(grid)
    ]
    never = TrialResult(6, {}, make_results(80, 0, 0, 0), TrialStatus.FINISHED, role=Role.NEVER)
    shipped = make_trial(7, 80, 2e-4, role=Role.SHIPPED)
    return [*trials, never, shipped]


def make_summary(trials: Sequence[TrialResult], search: SearchConfig | None = None) -> Summary:
    """What a search with these trials has come to."""
    return summarise(
        search or make_search(), make_recipe(), trials, STATUS, [], {}, 3725.4, lambda key: None, "/r/searches/s"
    )


def make_written(trials: Sequence[TrialResult], progress: Progress = Progress.ENDED) -> Written:
    """A summary as it is kept."""
    return Written(make_summary(trials), progress, WRITTEN)


def publish_ends(store: Store, trials: Sequence[TrialResult]) -> None:
    """Has a store keep where trials have ended, each with a picture of its own grey."""
    for trial in trials:
        if trial.key is None:
            continue
        picture = io.BytesIO()
        Image.new("L", (96, 96), 20 * trial.number).save(picture, "PNG")
        trained = make_trained(SEGMENTS[trial.key], environment={"torch": "2.x", "device": "<none>"})
        store.publish(trained, {"model.weight": torch.zeros(1)}, picture.getvalue())


def with_metric(trial: TrialResult, **metrics: float) -> TrialResult:
    """A trial with other values at its end; the names lack `val/`."""
    *points, last = trial.results
    changed = {**last.metrics, **{f"val/{name}": value for name, value in metrics.items()}}
    return replace(trial, results=(*points, replace(last, metrics=changed)))


class PageParts(HTMLParser):
    """Checks that tags are balanced, and keeps a page's parts."""

    VOID = frozenset(("meta", "br", "link", "img", "input", "hr", "path", "circle"))

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.resources: list[str] = []
        self.headings: list[str] = []
        self.rows: list[list[str]] = []
        self.columns: list[str] = []
        self.json: dict[str, Any] = {}
        self._attributes: list[dict[str, str | None]] = []
        self._in_trials = False
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []
        assert len(set(self.ids)) == len(self.ids)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        assert len(attributes) == len(attrs)
        self.resources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        self.ids += [str(attributes["id"])] if "id" in attributes else []
        if tag not in self.VOID:
            self.open.append(tag)
            self._attributes.append(attributes)
        self._in_trials |= attributes.get("id") == "trials"
        if self._in_trials and tag == "tr":
            self.rows.append([])
        if self._in_trials and tag == "td":
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._attributes.pop()
        if tag == "table":
            self._in_trials = False

    def handle_data(self, data: str) -> None:
        tag = self.open[-1] if self.open else ""
        if tag == "script" and self._attributes[-1].get("type") == "application/json":
            self.json[str(self._attributes[-1]["id"])] = json.loads(data)
        if tag not in ("script", "style"):
            self.text += data
        if tag == "h2":
            self.headings.append(data)
        if self._in_trials and "td" in self.open:
            self.rows[-1][-1] += data.strip()
        if self._in_trials and self.open[-2:] == ["th", "button"]:
            self.columns.append(data)

    def cells(self, column: str) -> list[str]:
        """A column of the table of trials, from the top."""
        index = self.columns.index(column) + 1  # behind the boxes
        return [row[index] for row in self.rows if row]

    def traces(self, chart: str) -> list[dict[str, Any]]:
        """What a chart draws."""
        return list(self.json[f"{chart}-data"]["data"])
