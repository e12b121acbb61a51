"""Curves over both stages: stage one as a trunk, drawn once, and stage two as branches that leave it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from latentsync_ray.config.recipe import FIRST_STAGE, SECOND_STAGE
from latentsync_ray.report.board import Board
from latentsync_ray.report.charts.common import Chart, marker, new_figure, telling_range
from latentsync_ray.report.palette import LIGHT
from latentsync_ray.report.trials import Boundary, TrialResult

_STEP = "<br>step %{x:,}: %{y:.4g}<extra></extra>"


@dataclass(frozen=True)
class _Series:
    """What one trace draws: lines with gaps between them, or marks."""

    name: str
    points: list[tuple[Boundary, str] | None]
    """Boundaries and the trials that they belong to; None is a gap."""
    style: Mapping[str, object]

    @property
    def x(self) -> list[int | None]:
        return [None if point is None else point[0].global_step for point in self.points]

    def y(self, metric: str) -> list[float | None]:
        return [None if point is None else point[0].metrics.get(metric) for point in self.points]

    @property
    def labels(self) -> list[str | None]:
        return [None if point is None else point[1] for point in self.points]


def stage_tree(board: Board) -> Chart:
    """The metric at each boundary, with marks where trials ended.

    Args:
        board: With trials that have started.
    """
    ends = [entry for entry in board.drawn if not entry.is_best] + [e for e in board.drawn if e.is_best]
    marks = [(entry.trial.results[-1], entry.label) for entry in ends]
    series = [*_lines(board), _Series("ends", [*marks], {"mode": "markers", "marker": marker(board, ends)})]
    text = f"{board.metric} at each report boundary: stage one as a trunk, stage two as branches"
    chart = _chart("tree", board.metric, series, text)
    left = [entry.trial.transition_step for entry in board.drawn if entry.trial.transition_step is not None]
    chart.figure.update_yaxes(range=telling_range(board, board.drawn, min(left) / 2) if len(left) > 1 else None)
    return chart


def curves(board: Board) -> Chart:
    """Every metric at each boundary, one at a time, with marks where trials left stage one.

    Args:
        board: With trials that have started.
    """
    stages = [split(entry.trial) for entry in board.drawn]
    left = {first[-1].key: first[-1] for first, second in stages if first and second}
    style = {"mode": "markers", "marker": {"symbol": "diamond-open", "size": 10, "color": LIGHT.ink, "line_width": 2}}
    transitions = _Series("transition", [(point, "") for point in left.values()], style)
    series = [*_lines(board), transitions]
    reported = {name for entry in board.drawn for point in entry.trial.results for name in point.metrics}
    metrics = sorted(reported or {board.metric}, key=lambda name: (name != "train/loss", name))
    text = "the chosen metric at each report boundary, with a diamond at each transition"
    chart = _chart("curves", metrics[0], series, text)
    return Chart(chart.name, chart.figure, text, {name: [one.y(name) for one in series] for name in metrics})


def split(trial: TrialResult) -> tuple[list[Boundary], list[Boundary]]:
    """A trial's results in stage one, and those in stage two after the last one before."""
    first = [point for point in trial.results if point.stage == FIRST_STAGE]
    second = [point for point in trial.results if point.stage == SECOND_STAGE]
    return first, [*first[-1:], *second] if second else []


def _chart(name: str, metric: str, series: Sequence[_Series], text: str) -> Chart:
    figure = new_figure(460, "global_step", metric)
    for one in series:
        said = one.name if one.name in ("stage one", "transition") else "%{text}"
        figure.add_scatter(
            x=one.x, y=one.y(metric), customdata=one.labels, name=one.name, hovertemplate=said + _STEP, **one.style
        )
    last = max((step for one in series for step in one.x if step is not None), default=1)
    figure.update_xaxes(range=[0, 1.03 * last])
    return Chart(name, figure, text)


def _lines(board: Board) -> list[_Series]:
    """The trunk, the branches of each colour, and the best trials' branches on top."""
    trunk, drawn = list[tuple[Boundary, str] | None](), set[str]()
    for entry in sorted(board.drawn, key=lambda entry: -len(split(entry.trial)[0])):
        points = split(entry.trial)[0]
        num_drawn = sum(point.key in drawn for point in points)
        if num_drawn < len(points):
            trunk += [*((point, "") for point in points[max(0, num_drawn - 1) :]), None]
        drawn.update(point.key for point in points)
    made = [_Series("stage one", trunk, {"mode": "lines", "line": {"color": LIGHT.ink, "width": 3}})]
    branches: dict[tuple[bool, str], list[tuple[Boundary, str] | None]] = {}
    for entry in board.drawn:
        if points := split(entry.trial)[1]:
            gathered = branches.setdefault((entry.is_best, board.colour(entry)), [])
            gathered += [*((point, entry.label) for point in points), None]
    for (is_best, colour), gathered in sorted(branches.items()):
        style = {"mode": "lines", "line": {"color": colour, "width": 4 if is_best else 1.8}}
        made.append(_Series("stage two", gathered, style))
    return made
