"""The report of a search as one HTML page that needs nothing from outside."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.io import to_html
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from latentsync_ray.config.recipe import FIRST_STAGE, SECOND_STAGE
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.report.trials import TrialLog

_INK, _MUTED, _LINES, _ACCENT, _FAILED = "#1f2933", "#66727f", "#e4e9ee", "#0b7285", "#d6336c"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_SYMBOLS = {
    "finished": "circle",
    "stopped": "x",
    "diverged": "x",
    "failed": "x",
    "unfinished": "circle-open",
    "running": "circle-open",
}
_NUM_TICKS, _NUM_COLUMNS = 6, 4

_AXIS = {"gridcolor": _LINES, "linecolor": _MUTED, "zeroline": False, "tickformat": ".3~g", "automargin": True}
_LAYOUT = {
    "font": {"family": _FONT, "size": 13, "color": _INK},
    "margin": {"l": 60, "r": 8, "t": 36, "b": 48},
    "legend": {"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom", "title_font_size": 13},
    "hoverlabel": {"bgcolor": "#fff", "bordercolor": _LINES, "align": "left"},
    "xaxis": {**_AXIS, "showline": True, "title_font_size": 13},
    "yaxis": {**_AXIS, "title_font_size": 13},
}

_STYLE = f"""
body {{ background: #f6f8fa; color: {_INK}; font: 15px/1.5 {_FONT}; margin: 36px auto; width: min(1180px, 94%); }}
h1, h2 {{ font-size: 26px; font-weight: 650; margin: 0; }}
h2 {{ font-size: 17px; }}
p, small, th {{ color: {_MUTED}; font-weight: 400; margin: 2px 0 8px; }}
section {{ background: #fff; border: 1px solid {_LINES}; border-radius: 10px; padding: 18px 22px; margin-top: 20px; }}
.cards {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 0 16px; }}
.cards b {{ display: block; color: {_INK}; font-size: 27px; font-weight: 650; line-height: 1.25; }}
.table {{ overflow-x: auto; font-size: 14px; font-variant-numeric: tabular-nums; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: right; padding: 6px 10px; border-bottom: 1px solid {_LINES}; white-space: nowrap; }}
td:last-child {{ text-align: left; white-space: normal; color: {_FAILED}; }}
tr.best td {{ background: #e6f4f6; font-weight: 650; }}
"""


def report_html(search: SearchConfig, trials: Mapping[int, TrialLog], summary: Mapping[str, Any]) -> str:
    """Draws a finished search.

    Args:
        search: What was asked.
        trials: What became of each trial, by number.
        summary: The values of `summary.json`.

    Returns:
        A whole HTML page, with its pictures and the script that draws them.
    """
    every = [trials[number] for number in sorted(trials)]
    started = [trial for trial in every if trial.results]
    best = trials[summary["best"]["trial"]] if summary["best"] else None
    page = [_headline(search, best, summary)]
    if best is not None:
        about = (
            f"{search.metric} at each report boundary. Stage one is drawn once; branches leave it where trials did. "
            "The star is the best trial, a cross one that was stopped (red: diverged or failed). A double click "
            "shows all values."
        )
        page.append(_section("Stage tree", about, _stage_tree(search, started, best)))
        if names := [name for name in search.param_space if len(_distinct(started, name)) > 1]:
            about = f"Last {search.metric} of each trial, in the colours above. Crosses did not run to their end."
            page.append(_section("Parameters", about, _parameter_panels(search, started, names)))
        about = "Unweighted, at fixed timesteps and noise. The dotted line is the transition."
        page.append(_section(f"Validation terms of trial {best.number}", about, _validation_terms(best)))
    page.append(_section("Trials", "Finished ones first, by their last result.", _table(search, every, best)))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(search.name)}</title>'
        f"<style>{_STYLE}</style><script>{get_plotlyjs() if best else ''}</script></head>"
        f"<body><h1>{escape(search.name)}</h1>{''.join(page)}</body></html>\n"
    )


def _section(title: str, about: str, content: go.Figure | str) -> str:
    if isinstance(content, go.Figure):
        config, name = {"displayModeBar": False, "responsive": True}, title.split()[0].lower()
        content.layout.template = {"layout": _LAYOUT}
        content = to_html(content, config, include_plotlyjs=False, full_html=False, div_id=name)
    return f"<section><h2>{escape(title)}</h2><p>{escape(about)}</p>{content}</section>"


def _headline(search: SearchConfig, best: TrialLog | None, summary: Mapping[str, Any]) -> str:
    """The best trial and its parameters, and what sharing and the search took."""
    sentence = "Best: " + _facts(best, " · ") if best else "No trial has reported a result."
    by_status = ", ".join(f"{count} {status}" for status, count in summary["trials_by_status"].items() if count)
    wall, work = (str(timedelta(seconds=round(summary[name]))) for name in ("wall_seconds", "gpu_seconds"))
    without = f"{summary['steps_without_sharing']:,} without sharing"
    cards = [
        (f"best {search.metric}", _text(best and best.last[search.metric]), f"{search.mode} is best"),
        ("steps trained now", f"{summary['steps_trained']:,}", f"{summary['steps_distinct']:,} distinct in all"),
        ("sharing factor", f"{summary['sharing_factor']:.2f}", without),
        ("wall time", wall, f"{work} of worker time"),
        ("trials", f"{summary['trials']}", by_status),
    ]
    html = "".join(f"<section><small>{escape(a)}<b>{escape(b)}</b>{escape(c)}</small></section>" for a, b, c in cards)
    return f'<p>{sentence}</p><div class="cards">{html}</div>'


def _colours(search: SearchConfig, trials: Sequence[TrialLog]) -> tuple[str, dict[str, str]]:
    """The parameter that colours the trials, stage two's learning rate or else the last one, and its values'."""
    names = list(search.param_space)
    by = ([name for name in names if name.startswith("second_stage.") and name.endswith(".lr")] or names or [""])[-1]
    values = [_text(value) for value in _distinct(trials, by)]
    return by, dict(zip(values, sample_colorscale("Plasma", np.linspace(0.08, 0.8, len(values))), strict=True))


def _stage_tree(search: SearchConfig, trials: Sequence[TrialLog], best: TrialLog) -> go.Figure:
    """Stage one as a trunk, drawn once, and stage two as branches that leave it at their transitions."""
    by, colours = _colours(search, trials)
    figure = go.Figure()
    drawn: set[str] = set()
    for trial in sorted(trials, key=lambda trial: -len(_split(trial)[0])):
        trunk = _split(trial)[0]
        num_drawn = sum(point["key"] in drawn for point in trunk)
        if num_drawn < len(trunk):
            line, new = {"color": _INK, "width": 3}, trunk[max(0, num_drawn - 1) :]
            figure.add_trace(_trace(new, search.metric, "stage one", mode="lines", line=line, showlegend=False))
        drawn.update(point["key"] for point in trunk)

    for trial in sorted(trials, key=lambda trial: trial is best):  # the best one comes last, to lie on top
        branch, value, text = _split(trial)[1], _text(trial.parameters.get(by)), _facts(trial)
        colour = colours[value] if branch else _INK
        symbol = "star" if trial is best else _SYMBOLS[trial.status]
        line = {"color": colour, "width": 4 if trial is best else 1.8}
        marker = {"symbol": symbol, "size": {"star": 16, "x": 9}.get(symbol, 7)}
        marker["color"] = _FAILED if trial.status in ("diverged", "failed") else colour
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


def _parameter_panels(search: SearchConfig, trials: Sequence[TrialLog], names: Sequence[str]) -> go.Figure:
    """The last metric against each parameter."""
    num_columns = min(len(names), _NUM_COLUMNS)
    num_rows = math.ceil(len(names) / num_columns)
    figure = make_subplots(num_rows, num_columns, shared_yaxes=True, horizontal_spacing=0.04)
    by, colours = _colours(search, trials)
    colour, symbol = [colours[_text(t.parameters.get(by))] for t in trials], [_SYMBOLS[t.status] for t in trials]
    y, text = [trial.last[search.metric] for trial in trials], [_facts(trial) for trial in trials]
    marker, hover = {"color": colour, "symbol": symbol, "size": 9}, "%{text}<br>%{y:.4g}<extra></extra>"
    for index, name in enumerate(names):
        place = {"row": index // num_columns + 1, "col": index % num_columns + 1}
        x, values = [trial.parameters.get(name) for trial in trials], _distinct(trials, name)
        axis: dict[str, Any] = {"type": _axis_type(values), "title_text": escape(name)}
        if axis["type"] == "category":
            x = [_text(value) for value in x]
        elif len(values) <= _NUM_TICKS:
            axis |= {"tickvals": values, "ticktext": [_text(value) for value in values]}
        elif axis["type"] == "log":
            axis["dtick"] = 1
        figure.add_scatter(x=x, y=y, mode="markers", marker=marker, text=text, hovertemplate=hover, **place)
        figure.update_xaxes(**axis, **place)
    figure.update_layout(height=280 * num_rows, showlegend=False, margin_t=16)
    figure.update_yaxes(type=_axis_type(y))
    figure.update_yaxes(title_text=search.metric, col=1)
    return figure


def _validation_terms(trial: TrialLog) -> go.Figure:
    """The loss terms on the validation set, side by side since their scales differ."""
    terms = [name for name in trial.last if name.startswith("val/") and name != "val/objective"]
    figure = make_subplots(1, max(1, len(terms)), subplot_titles=terms, horizontal_spacing=0.05)
    for column, term in enumerate(terms, start=1):
        for points, colour in zip(_split(trial), (_INK, _ACCENT), strict=True):
            style = {"mode": "lines+markers", "line": {"color": colour, "width": 2}, "marker": {"size": 4}}
            figure.add_trace(_trace(points, term, term, **style), row=1, col=column)
    if trial.transition_step is not None:
        figure.add_vline(trial.transition_step, line={"dash": "dot", "color": _MUTED, "width": 1.5})
    figure.update_layout(height=280, showlegend=False)
    figure.update_annotations(font_size=13)
    figure.update_xaxes(title_text="global_step", nticks=5)
    figure.update_yaxes(rangemode="tozero")
    return figure


def _table(search: SearchConfig, trials: Sequence[TrialLog], best: TrialLog | None) -> str:
    worst = math.inf if search.mode == "min" else -math.inf
    by_metric = sorted(trials, key=lambda trial: trial.last.get(search.metric, worst), reverse=search.mode == "max")
    columns = ["trial", "status", search.metric, "transition", "steps", "shared", *search.param_space, ""]
    rows = ["<tr>" + "".join(f"<th>{escape(column)}</th>" for column in columns)]
    for trial in sorted(by_metric, key=lambda trial: list(_SYMBOLS).index(trial.status)):
        steps = trial.last.get("global_step", 0)
        values = [trial.number, trial.status, trial.last.get(search.metric), trial.transition_step, steps]
        values.append(f"{trial.num_steps_shared / max(1, trial.num_steps):.0%}")
        values += [*(trial.parameters.get(name) for name in search.param_space), trial.error]
        cells = "".join(f"<td>{escape(_text(value))}</td>" for value in values)
        rows.append(f"<tr{' class=best' * (trial is best)}>{cells}")
    return f'<div class="table"><table>{"</tr>".join(rows)}</tr></table></div>'


def _split(trial: TrialLog) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Its results in stage one, and those in stage two after the last one before."""
    first = [result for result in trial.results if result["stage"] == FIRST_STAGE]
    second = [result for result in trial.results if result["stage"] == SECOND_STAGE]
    return first, [*first[-1:], *second] if second else []


def _trace(points: Sequence[Mapping[str, Any]], metric: str, text: str, **style: Any) -> go.Scatter:
    x, y = [point["global_step"] for point in points], [point.get(metric) for point in points]
    return go.Scatter(x=x, y=y, hovertemplate=f"{text}<br>step %{{x}}: %{{y:.4g}}<extra></extra>", **style)


def _facts(trial: TrialLog, separator: str = "<br>") -> str:
    facts = [f"trial {trial.number}, {trial.status}", *(f"{k} {_text(v)}" for k, v in trial.parameters.items())]
    facts += [] if trial.transition_step is None else [f"transition at step {trial.transition_step}"]
    return separator.join(map(escape, facts))


def _telling_range(search: SearchConfig, trials: Sequence[TrialLog]) -> list[float] | None:
    """Where branches can be told apart: the steep start and what diverged may be out of range."""
    transitions = [trial.transition_step for trial in trials if trial.transition_step is not None]
    since = min(transitions, default=0) / 2
    values = [point[search.metric] for trial in trials for point in trial.results if point["global_step"] >= since]
    values = [value for value in values if math.isfinite(value)]
    if len(transitions) < 2 or len(set(values)) < 2:
        return None
    best = min(values) if search.mode == "min" else max(values)
    far = float(np.clip(best + 4 * (np.median(values) - best), min(values), max(values)))
    return sorted([best - 0.06 * (far - best), far + 0.06 * (far - best)])


def _distinct(trials: Iterable[TrialLog], name: str) -> list[Any]:
    """The values of a parameter, numbers first and in order."""
    values = {_text(trial.parameters.get(name)): trial.parameters.get(name) for trial in trials}.values()
    return sorted(values, key=lambda v: (0, v, "") if isinstance(v, int | float) else (1, 0, _text(v)))


def _axis_type(values: Sequence[Any]) -> str:
    if not all(isinstance(value, int | float) for value in values):
        return "category"
    return "log" if 0 < 10 * min(values) < max(values) else "linear"


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    if isinstance(value, float):
        return f"{value:.4g}".replace("e-0", "e-")
    return "-" if value is None else str(value)
