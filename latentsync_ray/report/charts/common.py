"""What the charts have in common: symbols, axes, and how a figure becomes JSON for the page's script.

Points carry their trial's label as `customdata`; the script looks up what to say of it, and highlights the trials
that are chosen in the table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.io.json import to_json_plotly

from latentsync_ray.core.baselines import BASELINES
from latentsync_ray.report.board import MAX_CLEAR, Board, Entry
from latentsync_ray.report.palette import LIGHT
from latentsync_ray.report.trials import TrialStatus

SYMBOLS = {
    TrialStatus.FINISHED: "circle",
    TrialStatus.STOPPED: "triangle-down",
    TrialStatus.DIVERGED: "x",
    TrialStatus.FAILED: "cross",
    TrialStatus.UNFINISHED: "circle-open",
    TrialStatus.RUNNING: "circle-open",
}
BEST_SYMBOL, BASELINE_SYMBOL = "star", "diamond"
_AXIS = {"gridcolor": LIGHT.lines, "linecolor": LIGHT.muted, "zeroline": False, "automargin": True}
_LAYOUT = {
    "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": LIGHT.ink},
    "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
    "paper_bgcolor": LIGHT.surface,
    "plot_bgcolor": LIGHT.surface,
    "hoverlabel": {"bgcolor": LIGHT.surface, "bordercolor": LIGHT.muted, "font_color": LIGHT.ink, "align": "left"},
    "hovermode": "closest",
    "showlegend": False,
    "xaxis": {**_AXIS, "showline": True, "tickformat": ",~r"},
    "yaxis": {**_AXIS, "tickformat": ".3~g"},
}


@dataclass(frozen=True)
class Chart:
    """A chart, and the metrics that it can show instead."""

    name: str
    """Its element's id."""
    figure: go.Figure
    text: str
    """What it shows, for who cannot see it."""
    alternatives: dict[str, list[list[float | None]]] = field(default_factory=dict)
    """Metric -> y of each trace; the user chooses among them."""

    @property
    def json(self) -> str:
        """The figure for the page's script, safe inside a script element."""
        values = {**self.figure.to_plotly_json(), "alternatives": self.alternatives}
        return str(to_json_plotly(values, engine="json")).replace("<", "\\u003c")


def new_figure(height: int, x: str, y: str) -> go.Figure:
    """An empty figure.

    Args:
        height: In pixels.
        x: What the horizontal axis says.
        y: What the vertical axis says.
    """
    figure = go.Figure(layout={"template": {"layout": _LAYOUT}, "height": height})
    figure.update_xaxes(title_text=x)
    figure.update_yaxes(title_text=y)
    return figure


def symbol(entry: Entry) -> str:
    """What marks a trial's end: that it is the best, or a baseline that ran to its end, or else its status."""
    if entry.is_best:
        return BEST_SYMBOL
    if entry.trial.role in BASELINES and entry.trial.status is TrialStatus.FINISHED:
        return BASELINE_SYMBOL
    return SYMBOLS[entry.trial.status]


def marker(board: Board, entries: Sequence[Entry]) -> dict[str, object]:
    """The marks of trials: a colour by value, a symbol by status."""
    is_dense = len(entries) > MAX_CLEAR
    return {
        "color": [board.colour(entry) for entry in entries],
        "symbol": [symbol(entry) for entry in entries],
        "size": [16 if entry.is_best else 6 if is_dense else 9 for entry in entries],
        "opacity": 0.8 if is_dense else 1,
        "line": {"width": 0 if is_dense else 1, "color": LIGHT.surface},
    }


def telling_range(board: Board, entries: Sequence[Entry], since_step: float) -> list[float] | None:
    """Where trials can be told apart: a steep start and what diverged may be out of range.

    Args:
        board: Says which metric is meant.
        entries: The trials.
        since_step: global_step from which on their results count.
    """
    points = [point for entry in entries for point in entry.trial.results if point.global_step >= since_step]
    found = [point.metrics.get(board.metric, math.nan) for point in points]
    values = [value for value in found if math.isfinite(value)]
    if len(set(values)) < 2:
        return None
    best = min(values) if board.mode == "min" else max(values)
    far = float(np.clip(best + 4 * (np.median(values) - best), min(values), max(values)))
    return sorted([best - 0.06 * (far - best), far + 0.06 * (far - best)])


def axis_type(values: Sequence[Any]) -> str:
    """`log` for positive numbers that differ tenfold, `category` for what is no number."""
    if not all(isinstance(value, int | float) for value in values):
        return "category"
    finite = [value for value in values if math.isfinite(value)]
    return "log" if finite and 0 < 10 * min(finite) < max(finite) else "linear"
