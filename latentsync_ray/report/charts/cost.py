"""Quality against cost: where each trial ended, and the Pareto front of all that trials have passed."""

from __future__ import annotations

import math

from latentsync_ray.report.board import Board
from latentsync_ray.report.charts.common import Chart, marker, new_figure, telling_range
from latentsync_ray.report.cost import cost_at, cost_label
from latentsync_ray.report.palette import LIGHT

_HOVER = "%{text}<br>cost %{x:,}: %{y:.4g}<extra></extra>"


def quality_against_cost(board: Board) -> Chart:
    """The metric where each trial ended against what it had cost.

    Args:
        board: With trials that have started.
    """
    entries = [e for e in board.ranked(board.started)[::-1] if math.isfinite(board.value(e))]  # the best lie on top
    label = cost_label(point for entry in entries for point in entry.trial.results)
    figure = new_figure(420, label, board.metric)
    front = pareto_front(board)
    figure.add_scatter(
        x=[cost for cost, _, _ in front],
        y=[value for _, value, _ in front],
        customdata=[label for _, _, label in front],
        name="Pareto front",
        mode="lines",
        line={"shape": "hv", "color": LIGHT.muted, "width": 2, "dash": "dot"},
        hovertemplate="front, " + _HOVER,
    )
    figure.add_scatter(
        x=[cost_at(entry.trial.results[-1]) for entry in entries],
        y=[board.value(entry) for entry in entries],
        customdata=[entry.label for entry in entries],
        name="ends",
        mode="markers",
        marker=marker(board, entries),
        hovertemplate=_HOVER,
    )
    figure.update_xaxes(rangemode="tozero")
    first_end = min((entry.trial.global_step for entry in entries), default=0)
    figure.update_yaxes(range=telling_range(board, entries, first_end / 2))
    return Chart("cost", figure, f"{board.metric} where each trial ended, against its cost, with the Pareto front")


def pareto_front(board: Board) -> list[tuple[float, float, str]]:
    """Cost, metric and trial of each boundary that is better than all that cost no more, from the cheapest on."""
    sign = 1 if board.mode == "min" else -1
    reached = [
        (cost_at(point), sign * point.metrics.get(board.metric, math.nan), entry.label)
        for entry in board.started
        for point in entry.trial.results
    ]
    front = list[tuple[float, float, str]]()
    for cost, value, label in sorted(point for point in reached if math.isfinite(point[1])):
        if not front or value < sign * front[-1][1]:
            front.append((cost, sign * value, label))
    return front
