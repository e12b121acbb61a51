"""From what is known of searches to what a page shows of them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from latentsync_ray.cli import program
from latentsync_ray.core.baselines import BASELINES
from latentsync_ray.core.forecast import Span
from latentsync_ray.report.board import Board, board_of, search_letters
from latentsync_ray.report.charts.common import BASELINE_SYMBOL, BEST_SYMBOL, SYMBOLS
from latentsync_ray.report.charts.cost import quality_against_cost
from latentsync_ray.report.charts.lineages import curves, stage_tree
from latentsync_ray.report.charts.parameters import importance_bars, parameter_panels
from latentsync_ray.report.importance import Importance, importance_of
from latentsync_ray.report.origin import SEARCH_FILE, Origin, read_origin
from latentsync_ray.report.page import Card, Mark, Page, SearchRow, Source
from latentsync_ray.report.page_table import page_table
from latentsync_ray.report.pictures import Evidence, Picture, evidence_of
from latentsync_ray.report.stored import Progress, Written
from latentsync_ray.report.summary import Summary
from latentsync_ray.report.words import facts, value_text
from latentsync_ray.store import Store


@dataclass(frozen=True)
class Reported:
    """A search, with all that its page shows."""

    written: Written
    place: str
    """Its folder or URI."""
    origin: Origin
    evidence: Evidence


def reported(store: Store, folder: str, written: Written) -> Reported:
    """A search with what its folder and its records add to its summary."""
    origin = read_origin(store, folder)
    return Reported(written, store.uri_of(folder), origin, evidence_of(store, written.summary))


def page_of(searches: Sequence[Reported]) -> Page:
    """The page of a search, or of several together.

    Args:
        searches: At least one; the first one's metric counts.
    """
    summaries = [one.written.summary for one in searches]
    board, letters = board_of(summaries), search_letters(len(searches))
    started, alone = bool(board.started), summaries[0] if len(summaries) == 1 else None
    running = any(one.written.progress is Progress.RUNNING for one in searches)
    importance = Importance(note="Told when the search has ended.") if running else importance_of(board)
    answers = [summary.answer for summary in summaries if summary.answer is not None]
    return Page(
        title=" · ".join(dict.fromkeys(summary.search.name for summary in summaries)),
        state="; ".join(filter(None, map(_state, searches, letters))),
        written=max(one.written.at for one in searches),
        sentences=(_sentences(alone) if alone else ()),
        commands=answers[0].commands if alone and answers else (),
        policies=answers[0].policies if alone and answers else (),
        searches=() if alone else tuple(map(_search_row, searches, letters)),
        cards=_cards(alone) if alone else (),
        pictures=tuple(itertools.chain(*map(_pictures, searches, letters))),
        metric=board.metric,
        num_drawn=len(board.drawn),
        key=_key(board),
        key_title=board.colour_by,
        cost=quality_against_cost(board) if started else None,
        tree=stage_tree(board) if started else None,
        curves=curves(board) if started else None,
        importance=importance_bars(importance.shares) if importance.shares else None,
        importance_note=importance.note,
        parameters=tuple(parameter_panels(board)) if started else (),
        table=page_table(board),
        notices=tuple(notice for summary in summaries for notice in summary.notices),
        sources=tuple(map(_source, searches, letters)),
    )


def _pictures(one: Reported, letter: str) -> tuple[Picture, ...]:
    """All of a search that is alone on its page, else its best trial's."""
    pictures = one.evidence.pictures
    return (
        tuple(replace(picture, title=f"{letter}: {picture.title}") for picture in pictures[:1])
        if letter
        else pictures
    )


def _sentences(summary: Summary) -> tuple[str, ...]:
    """The answer, or what can be said before there is one."""
    if summary.answer is not None and summary.answer.sentences:
        return summary.answer.sentences
    if summary.best is not None:
        return (f"Best: {' · '.join(facts(summary.best))}.",)
    return ("No trial has run to its end.",)


def _state(one: Reported, letter: str) -> str:
    written = one.written
    if written.progress is Progress.ENDED:
        by = written.summary.stopped_by
        said = "" if by is None else f"stopped by {by}"
    elif written.progress is Progress.RUNNING:
        said = "still running when this page was written; load it again for what is new"
    elif written.progress is Progress.INTERRUPTED:
        said = "interrupted; the same command goes on"
    else:
        said = f"failed: {written.error}"
    return f"{letter}: {said}" if said and letter else said


def _search_row(one: Reported, letter: str) -> SearchRow:
    summary = one.written.summary
    best = summary.best and summary.best.metrics.get(summary.search.metric)
    answer = _sentences(summary)[0]
    steps = f"{summary.steps_distinct:,}"
    return SearchRow(letter, summary.search.name, answer, value_text(best), len(summary.trials), steps)


def _cards(summary: Summary) -> tuple[Card, ...]:
    search, best = summary.search, summary.best
    by_status = ", ".join(f"{count} {status}" for status, count in summary.num_by_status.items() if count)
    wall, work = (str(timedelta(seconds=round(s))) for s in (summary.wall_seconds, summary.worker_seconds))
    planned = "" if summary.plan is None else f", planned {_span_text(summary.plan.steps)}"
    hours = None if summary.plan is None else summary.plan.wall_hours
    expected = "" if hours is None else f", planned {timedelta(seconds=round(3600 * hours.likely))}"
    distinct = f"{summary.steps_distinct:,} distinct in all{planned}"
    value = value_text(best and best.metrics[search.metric])
    return (
        Card(f"best {search.metric}", value, "less is better" if search.mode == "min" else "more is better"),
        Card("trials", f"{len(summary.trials):,}", by_status),
        Card("steps trained now", f"{summary.steps_trained:,}", distinct),
        Card("sharing factor", f"{summary.sharing_factor:.2f}", f"{summary.steps_without_sharing:,} without sharing"),
        Card("wall time", wall, f"{work} of worker time{expected}"),
    )


def _span_text(span: Span) -> str:
    """A figure of a plan, or its range."""
    return f"{span.most:,.0f}" if span.is_exact else f"{span.least:,.0f} to {span.most:,.0f}"


def _key(board: Board) -> tuple[Mark, ...]:
    """The colours, a range of values where neighbours share one, and the symbols that occur."""
    by_colour: dict[str, list[str]] = {}
    for text, colour in board.colours.items():
        by_colour.setdefault(colour, []).append(text)
    colours = [
        Mark(texts[0] if len(texts) == 1 else f"{texts[0]} to {texts[-1]}", colour=colour)
        for colour, texts in by_colour.items()
        if board.colour_by
    ]
    by_symbol: dict[str, list[str]] = {}
    for status, symbol in SYMBOLS.items():
        if any(entry.trial.status is status for entry in board.started):
            by_symbol.setdefault(symbol, []).append(str(status))
    symbols = [Mark(" or ".join(names), symbol=symbol) for symbol, names in by_symbol.items()]
    if any(entry.trial.role in BASELINES for entry in board.started):
        symbols.append(Mark("baseline", symbol=BASELINE_SYMBOL))
    best = [Mark("best", symbol=BEST_SYMBOL)] if any(entry.is_best for entry in board.started) else []
    return (*colours, *best, *symbols)


def _source(one: Reported, letter: str) -> Source:
    environment: Mapping[str, str] = one.evidence.environment or {}
    name = one.written.summary.search.name
    return Source(
        f"{letter}: {name}" if letter else name,
        f"{program('tune')} {one.place}/{SEARCH_FILE}",
        one.origin.command,
        tuple(sorted(one.origin.files.items(), key=lambda item: (item[0] != SEARCH_FILE, item[0]))),
        tuple(environment.items()),
    )
