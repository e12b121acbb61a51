"""The charts of the page: the stage tree, the parameters, and the validation terms of the best trial."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from latentsync_ray.config.plain import Plain
from latentsync_ray.config.recipe import FIRST_STAGE, OBJECTIVE, SECOND_STAGE
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.report.style import ACCENT, FAILED, INK, MUTED
from latentsync_ray.report.trials import Boundary, TrialResult, TrialStatus
from latentsync_ray.report.words import facts, value_text

_SYMBOLS = {
    TrialStatus.FINISHED: "circle",
    TrialStatus.STOPPED: "x",
    TrialStatus.DIVERGED: "x",
    TrialStatus.FAILED: "x",
    TrialStatus.UNFINISHED: "circle-open",
    TrialStatus.RUNNING: "circle-open",
}
_NUM_TICKS, _NUM_COLUMNS = 6, 4


def _colours(search: SearchConfig, trials: Sequence[TrialResult]) -> tuple[str, dict[str, str]]:
    """The parameter that colours the trials, stage two's learning rate or else the last one, and its values'."""
    names = list(search.param_space)
    by = ([name for name in names if name.startswith("second_stage.") and name.endswith(".lr")] or names or [""])[-1]
    values = [value_text(value) for value in distinct_values(trials, by)]
    return by, dict(zip(values, sample_colorscale("Plasma", np.linspace(0.08, 0.8, len(values))), strict=True))


def stage_tree(search: SearchConfig, trials: Sequence[TrialResult], best: TrialResult) -> go.Figure:
    """Stage one as a trunk, drawn once, and stage two as branches that leave it at their transitions."""
    by, colours = _colours(search, trials)
    figure = go.Figure()
    drawn: set[str] = set()
    for trial in sorted(trials, key=lambda trial: -len(_split(trial)[0])):
        trunk = _split(trial)[0]
        num_drawn = sum(point.key in drawn for point in trunk)
        if num_drawn < len(trunk):
            line, new = {"color": INK, "width": 3}, trunk[max(0, num_drawn - 1) :]
            figure.add_trace(_trace(new, search.metric, "stage one", mode="lines", line=line, showlegend=False))
        drawn.update(point.key for point in trunk)

    for trial in sorted(trials, key=lambda trial: trial is best):  # the best one comes last, to lie on top
        branch, value, text = _split(trial)[1], value_text(trial.config.get(by)), _hover(trial)
        colour = colours[value] if branch else INK
        symbol = "star" if trial is best else _SYMBOLS[trial.status]
        line = {"color": colour, "width": 4 if trial is best else 1.8}
        marker = {"symbol": symbol, "size": {"star": 16, "x": 9}.get(symbol, 7)}
        marker["color"] = FAILED if trial.status in ("diverged", "failed") else colour
        style = {"marker": marker, "line": line, "legendgroup": value, "showlegend": False}
        figure.add_trace(_trace(branch, search.metric, text, mode="lines", **style))
        figure.add_trace(_trace(trial.results[-1:], search.metric, text, mode="markers", **style))

    for value in list(colours)[:: math.ceil(len(colours) / _NUM_TICKS)] if by else ():
        line = {"color": colours[value], "width": 3}
        figure.add_scatter(x=[None], y=[None], mode="lines", name=value, line=line, legendgroup=value)
    figure.update_layout(height=480, legend_title_text=f"{escape(by)}  ")
    figure.update_xaxes(title_text="global_step", rangemode="tozero")
    figure.update_yaxes(title_text=search.metric, range=_telling_range(search, trials))
    return figure


def parameter_panels(search: SearchConfig, trials: Sequence[TrialResult], names: Sequence[str]) -> go.Figure:
    """The last metric against each parameter."""
    num_columns = min(len(names), _NUM_COLUMNS)
    num_rows = math.ceil(len(names) / num_columns)
    figure = make_subplots(num_rows, num_columns, shared_yaxes=True, horizontal_spacing=0.04)
    by, colours = _colours(search, trials)
    colour, symbol = [colours[value_text(t.config.get(by))] for t in trials], [_SYMBOLS[t.status] for t in trials]
    y, text = [trial.metrics[search.metric] for trial in trials], [_hover(trial) for trial in trials]
    marker, hover = {"color": colour, "symbol": symbol, "size": 9}, "%{text}<br>%{y:.4g}<extra></extra>"
    for index, name in enumerate(names):
        place = {"row": index // num_columns + 1, "col": index % num_columns + 1}
        x, values = [trial.config.get(name) for trial in trials], distinct_values(trials, name)
        axis: dict[str, object] = {"type": _axis_type(values), "title_text": escape(name)}
        if axis["type"] == "category":
            x = [value_text(value) for value in x]
        elif len(values) <= _NUM_TICKS:
            axis |= {"tickvals": values, "ticktext": [value_text(value) for value in values]}
        elif axis["type"] == "log":
            axis["dtick"] = 1
        figure.add_scatter(x=x, y=y, mode="markers", marker=marker, text=text, hovertemplate=hover, **place)
        figure.update_xaxes(**axis, **place)
    figure.update_layout(height=280 * num_rows, showlegend=False, margin_t=16)
    figure.update_yaxes(type=_axis_type(y))
    figure.update_yaxes(title_text=search.metric, col=1)
    return figure


def validation_terms(trial: TrialResult) -> go.Figure:
    """The loss terms on the validation set, side by side since their scales differ."""
    terms = [name for name in trial.metrics if name.startswith("val/") and name != OBJECTIVE]
    figure = make_subplots(1, max(1, len(terms)), subplot_titles=terms, horizontal_spacing=0.05)
    for column, term in enumerate(terms, start=1):
        for points, colour in zip(_split(trial), (INK, ACCENT), strict=True):
            style = {"mode": "lines+markers", "line": {"color": colour, "width": 2}, "marker": {"size": 4}}
            figure.add_trace(_trace(points, term, term, **style), row=1, col=column)
    if trial.transition_step is not None:
        figure.add_vline(trial.transition_step, line={"dash": "dot", "color": MUTED, "width": 1.5})
    figure.update_layout(height=280, showlegend=False)
    figure.update_annotations(font_size=13)
    figure.update_xaxes(title_text="global_step", nticks=5)
    figure.update_yaxes(rangemode="tozero")
    return figure


def _split(trial: TrialResult) -> tuple[list[Boundary], list[Boundary]]:
    """Its results in stage one, and those in stage two after the last one before."""
    first = [point for point in trial.results if point.stage == FIRST_STAGE]
    second = [point for point in trial.results if point.stage == SECOND_STAGE]
    return first, [*first[-1:], *second] if second else []


def _hover(trial: TrialResult) -> str:
    return "<br>".join(map(escape, facts(trial)))


def _trace(points: Sequence[Boundary], metric: str, text: str, **style: Any) -> go.Scatter:
    x, y = [point.global_step for point in points], [point.metrics.get(metric) for point in points]
    return go.Scatter(x=x, y=y, hovertemplate=f"{text}<br>step %{{x}}: %{{y:.4g}}<extra></extra>", **style)


def _telling_range(search: SearchConfig, trials: Sequence[TrialResult]) -> list[float] | None:
    """Where branches can be told apart: the steep start and what diverged may be out of range."""
    transitions = [trial.transition_step for trial in trials if trial.transition_step is not None]
    since = min(transitions, default=0) / 2
    values = [
        point.metrics[search.metric] for trial in trials for point in trial.results if point.global_step >= since
    ]
    values = [value for value in values if math.isfinite(value)]
    if len(transitions) < 2 or len(set(values)) < 2:
        return None
    best = min(values) if search.mode == "min" else max(values)
    far = float(np.clip(best + 4 * (np.median(values) - best), min(values), max(values)))
    return sorted([best - 0.06 * (far - best), far + 0.06 * (far - best)])


def distinct_values(trials: Iterable[TrialResult], name: str) -> list[Plain]:
    """The values of a parameter, numbers first and in order."""
    values = {value_text(trial.config.get(name)): trial.config.get(name) for trial in trials}.values()
    return sorted(values, key=lambda v: (0, v, "") if isinstance(v, int | float) else (1, 0, value_text(v)))


def _axis_type(values: Sequence[Any]) -> str:
    if not all(isinstance(value, int | float) for value in values):
        return "category"
    return "log" if 0 < 10 * min(values) < max(values) else "linear"
