"""The report of a search as one HTML page that needs nothing from outside."""

from __future__ import annotations

import math
from datetime import timedelta
from html import escape

import plotly.graph_objects as go
from plotly.io import to_html
from plotly.offline import get_plotlyjs

from latentsync_ray.report.charts import distinct_values, parameter_panels, stage_tree, validation_terms
from latentsync_ray.report.style import LAYOUT, STYLE
from latentsync_ray.report.summary import Summary
from latentsync_ray.report.trials import TrialResult, TrialStatus
from latentsync_ray.report.words import facts, value_text


def page_html(summary: Summary) -> str:
    """A whole HTML page, with its charts and the script that draws them."""
    search, best = summary.search, summary.best
    started = [trial for trial in summary.trials if trial.results]
    page = [_headline(summary)]
    if best is not None:
        about = (
            f"{search.metric} at each report boundary. Stage one is drawn once; branches leave it where trials did. "
            "The star is the best trial, a cross one that was stopped (red: diverged or failed). A double click "
            "shows all values."
        )
        page.append(_section("Stage tree", about, stage_tree(search, started, best)))
        if names := [name for name in search.param_space if len(distinct_values(started, name)) > 1]:
            about = f"Last {search.metric} of each trial, in the colours above. Crosses did not run to their end."
            page.append(_section("Parameters", about, parameter_panels(search, started, names)))
        about = "Unweighted, at fixed timesteps and noise. The dotted line is the transition."
        page.append(_section(f"Validation terms of trial {best.number}", about, validation_terms(best)))
    page.append(_section("Trials", "Finished ones first, by their last result.", _table(summary)))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(search.name)}</title>'
        f"<style>{STYLE}</style><script>{get_plotlyjs() if best else ''}</script></head>"
        f"<body><h1>{escape(search.name)}</h1>{''.join(page)}</body></html>\n"
    )


def _section(title: str, about: str, content: go.Figure | str) -> str:
    if isinstance(content, go.Figure):
        config, name = {"displayModeBar": False, "responsive": True}, title.split()[0].lower()
        content.layout.template = {"layout": LAYOUT}
        content = to_html(content, config, include_plotlyjs=False, full_html=False, div_id=name)
    return f"<section><h2>{escape(title)}</h2><p>{escape(about)}</p>{content}</section>"


def _headline(summary: Summary) -> str:
    """The best trial and its parameters, and what sharing and the search took."""
    search, best = summary.search, summary.best
    sentence = "Best: " + escape(" · ".join(facts(best))) if best else "No trial has reported a result."
    by_status = ", ".join(f"{count} {status}" for status, count in summary.num_by_status.items() if count)
    wall, work = (str(timedelta(seconds=round(s))) for s in (summary.wall_seconds, summary.worker_seconds))
    without = f"{summary.steps_without_sharing:,} without sharing"
    cards = [
        (f"best {search.metric}", value_text(best and best.metrics[search.metric]), f"{search.mode} is best"),
        ("steps trained now", f"{summary.steps_trained:,}", f"{summary.steps_distinct:,} distinct in all"),
        ("sharing factor", f"{summary.sharing_factor:.2f}", without),
        ("wall time", wall, f"{work} of worker time"),
        ("trials", f"{len(summary.trials)}", by_status),
    ]
    html = "".join(f"<section><small>{escape(a)}<b>{escape(b)}</b>{escape(c)}</small></section>" for a, b, c in cards)
    return f'<p>{sentence}</p><div class="cards">{html}</div>'


def _table(summary: Summary) -> str:
    search = summary.search
    statuses, sign = list(TrialStatus), 1 if search.mode == "min" else -1

    def rank(trial: TrialResult) -> tuple[int, float]:
        return statuses.index(trial.status), sign * trial.metrics.get(search.metric, sign * math.inf)

    columns = ["trial", "status", search.metric, "transition", "steps", "shared", *search.param_space, ""]
    rows = ["<tr>" + "".join(f"<th>{escape(column)}</th>" for column in columns)]
    for trial in sorted(summary.trials, key=rank):
        values = [trial.number, trial.status, trial.metrics.get(search.metric), trial.transition_step]
        values += [trial.global_step, f"{trial.num_steps_shared / max(1, trial.num_steps):.0%}"]
        values += [*(trial.config.get(name) for name in search.param_space), trial.error]
        cells = "".join(f"<td>{escape(value_text(value))}</td>" for value in values)
        rows.append(f"<tr{' class=best' * (trial is summary.best)}>{cells}")
    return f'<div class="table"><table>{"</tr>".join(rows)}</tr></table></div>'
