"""The metric against each parameter, and how much each parameter mattered."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

from latentsync_ray.core.baselines import BASELINES
from latentsync_ray.report.board import Board, Entry, distinct_values
from latentsync_ray.report.charts.common import Chart, axis_type, marker, new_figure
from latentsync_ray.report.palette import LIGHT
from latentsync_ray.report.words import value_text

_NUM_TICKS = 6


def parameter_panels(board: Board) -> list[Chart]:
    """The last metric of each trial against each parameter that differs between them."""
    names = [name for name in board.names if len(distinct_values(board.started, name)) > 1]
    return [_panel(board, name, f"parameter-{index}") for index, name in enumerate(names)]


def _panel(board: Board, name: str, identity: str) -> Chart:
    valued = [entry for entry in board.started if _has_value(entry, name) and math.isfinite(board.value(entry))]
    entries = board.ranked(valued)[::-1]  # the best lie on top
    values = distinct_values(entries, name)
    figure = new_figure(300, escape(name), board.metric)
    kind = axis_type(values)
    x = [entry.trial.config.get(name) for entry in entries]
    if kind == "category":
        x = [value_text(value) for value in x]
    elif len(values) <= _NUM_TICKS:
        figure.update_xaxes(tickvals=values, ticktext=[value_text(value) for value in values])
    elif kind == "log":
        figure.update_xaxes(dtick=1, tickformat="~e")
    figure.update_xaxes(type=kind)
    y = [board.value(entry) for entry in entries]
    figure.add_scatter(
        x=x,
        y=y,
        customdata=[entry.label for entry in entries],
        mode="markers",
        marker=marker(board, entries),
        hovertemplate="%{text}<br>%{y:.4g}<extra></extra>",
    )
    figure.update_yaxes(type=axis_type(y))
    return Chart(identity, figure, f"last {board.metric} of each trial against {name}")


def _has_value(entry: Entry, name: str) -> bool:
    """Whether a trial has a value of a parameter; a baseline that never leaves stage one has no step for that."""
    config = entry.trial.config
    return name in config and (config[name] is not None or entry.trial.role not in BASELINES)


def importance_bars(importances: Mapping[str, float]) -> Chart:
    """How much each parameter mattered.

    Args:
        importances: Shares of the metric's variance, by parameter.
    """
    figure = new_figure(80 + 40 * len(importances), "share", "")
    names = sorted(importances, key=lambda name: importances[name])
    figure.add_bar(
        x=[importances[name] for name in names],
        y=[escape(name) for name in names],
        orientation="h",
        marker_color=LIGHT.accent,
        textangle=0,
        text=[f"{importances[name]:.0%}" for name in names],
        hovertemplate="%{y}: %{x:.3f}<extra></extra>",
    )
    figure.update_xaxes(range=[0, 1], tickformat=".0%")
    return Chart("importance", figure, "share of the metric's variance that each parameter explains")
