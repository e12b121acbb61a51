"""The table of the page: a row for each trial, to be sorted, filtered and chosen from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

from latentsync_ray.core.baselines import Role
from latentsync_ray.report.board import Board, Entry
from latentsync_ray.report.charts.common import symbol
from latentsync_ray.report.trials import TrialStatus
from latentsync_ray.report.words import facts, value_text


@dataclass(frozen=True)
class Cell:
    """A value of a row."""

    text: str
    order: str = ""
    """By which rows are sorted: a number's digits; empty if the text itself is meant, or nothing is there."""


@dataclass(frozen=True)
class Row:
    """A trial."""

    label: str
    """As in the charts."""
    is_best: bool
    symbol: str
    """Of its mark in the charts."""
    colour: str
    """Of its mark in the charts; empty for one that has not started."""
    cells: tuple[Cell, ...]
    facts: str
    """What charts say of it, as HTML."""


@dataclass(frozen=True)
class PageTable:
    """The trials, the best first."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def page_table(board: Board) -> PageTable:
    """A row for each trial, finished ones first, by their last result."""
    statuses, sign = list(TrialStatus), 1 if board.mode == "min" else -1
    ordered = sorted(board.entries, key=lambda e: (statuses.index(e.trial.status), sign * board.value(e)))
    roles = any(entry.trial.role is not Role.SEARCHED for entry in ordered)
    errors = any(entry.trial.error for entry in ordered)
    columns = ["trial", "status", board.metric, "transition", "steps", "shared", *board.names]
    columns += ["kind"] * roles + ["error"] * errors
    return PageTable(tuple(columns), tuple(_row(board, entry, roles, errors) for entry in ordered))


def _row(board: Board, entry: Entry, roles: bool, errors: bool) -> Row:
    trial = entry.trial
    shared = trial.num_steps_shared / max(1, trial.num_steps)
    cells = [
        Cell(entry.label, str(trial.number) if not entry.search else ""),
        Cell(str(trial.status)),
        _cell(trial.metrics.get(board.metric)),
        _cell(trial.transition_step),
        _cell(trial.global_step),
        Cell(f"{shared:.0%}", f"{shared:.6g}"),
        *(_cell(trial.config.get(name)) for name in board.names),
    ]
    cells += [Cell("" if trial.role is Role.SEARCHED else str(trial.role))] * roles + [Cell(trial.error)] * errors
    colour = board.colour(entry) if trial.results else ""
    said = "<br>".join(map(escape, facts(trial)))
    said = f"{escape(entry.search)}: {said}" if entry.search else said
    return Row(entry.label, entry.is_best, symbol(entry), colour, tuple(cells), said)


def _cell(value: object) -> Cell:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return Cell(value_text(value), repr(value) if number else "")
