"""`report.json`: what a search's page shows besides its trials' final results, so that a page can be made later.

While a search runs it also holds the trials so far; when it has ended, they are in `trials.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from typing import Any

from latentsync_ray.config.errors import UserError
from latentsync_ray.config.plain import settings
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.core.baselines import Role
from latentsync_ray.core.forecast import Forecast, Span
from latentsync_ray.engine.budget import Exceeded
from latentsync_ray.report.answer import Answer, Difference, NextCommand, ParameterAnswer
from latentsync_ray.report.summary import Cloning, Summary
from latentsync_ray.report.trials_file import read_trials, trial_from_plain
from latentsync_ray.store import DamagedEntryError, Store

REPORT_FILE = "report.json"
_ELSEWHERE = ("search", "trials", "best")


class Progress(StrEnum):
    """How far a search was when it was last heard of."""

    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    ENDED = "ended"


@dataclass(frozen=True)
class Written:
    """A summary, and how far the search was."""

    summary: Summary
    progress: Progress
    at: datetime
    """When it was written, in UTC."""
    error: str = ""
    """Why the search has failed; empty if it has not."""


def write_stored(store: Store, folder: str, written: Written) -> None:
    """Keeps what a page needs.

    Args:
        store: Where the search is kept.
        folder: The search's folder below the store's root.
        written: What to keep; the trials of a search that has ended are in `trials.json` already.
    """
    summary = written.summary
    values = {f.name: getattr(summary, f.name) for f in fields(Summary) if f.name not in _ELSEWHERE}
    trials = () if written.progress is Progress.ENDED else summary.trials
    state = {
        "progress": str(written.progress),
        "at": written.at.isoformat(timespec="seconds"),
        "error": written.error,
    }
    best = summary.best and summary.best.number
    store.write_json(f"{folder}/{REPORT_FILE}", settings({**state, **values, "best": best, "trials": trials}))


def read_stored(store: Store, folder: str, search: SearchConfig) -> Written:
    """What `write_stored` has kept.

    Args:
        store: Where the search is kept.
        folder: The search's folder below the store's root.
        search: What was asked.

    Raises:
        UserError: The search has not begun, or a file is damaged.
    """
    try:
        values = store.read_json(f"{folder}/{REPORT_FILE}")
        ended = read_trials(store, folder)
    except DamagedEntryError as error:
        raise UserError(f"{error}; run the search again") from None
    if values is None:
        raise UserError(f"{store.uri_of(folder)}: has no {REPORT_FILE}; run the search's command again")
    progress = Progress(values.pop("progress"))
    at, error_text = datetime.fromisoformat(values.pop("at")), values.pop("error")
    trials = [trial_from_plain(trial) for trial in values["trials"]]
    if progress is Progress.ENDED and ended is not None:
        trials = ended[0]
    best = next((trial for trial in trials if trial.number == values["best"]), None)
    values |= {"search": search, "trials": tuple(trials), "best": best, "notices": tuple(values["notices"])}
    values["stopped_by"] = values["stopped_by"] and Exceeded(**values["stopped_by"])
    values["clonings"] = tuple(Cloning(**cloning) for cloning in values["clonings"])
    values["plan"] = values["plan"] and forecast_from_plain(values["plan"])
    values["answer"] = values["answer"] and answer_from_plain(values["answer"])
    return Written(Summary(**values), progress, at, error_text)


def forecast_from_plain(values: Mapping[str, Any]) -> Forecast:
    """The forecast that these plain values stand for."""
    spans = {name: Span(**value) for name, value in values.items() if isinstance(value, dict)}
    return Forecast(**{**values, **spans})


def answer_from_plain(values: Mapping[str, Any]) -> Answer:
    """The answer that these plain values stand for."""
    parameters = [
        ParameterAnswer(**{**one, **{name: tuple(one[name]) for name in ("tied", "worse", "diverged")}})
        for one in values["parameters"]
    ]
    made = {
        "tied": tuple(values["tied"]),
        "differences": {Role(role): Difference(**one) for role, one in values["differences"].items()},
        "parameters": tuple(parameters),
        "sentences": tuple(values["sentences"]),
        "commands": tuple(NextCommand(**one) for one in values["commands"]),
        "policies": tuple(values["policies"]),
    }
    return Answer(**{**values, **made})
