"""The trials that a page shows, of one search or of several, and by which value they are coloured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from string import ascii_uppercase

from latentsync_ray.config.plain import Plain
from latentsync_ray.core.baselines import Role
from latentsync_ray.report.palette import LIGHT, series_colours
from latentsync_ray.report.summary import Summary
from latentsync_ray.report.trials import TrialResult
from latentsync_ray.report.words import value_text

MAX_LINES, NUM_BEST_LINES = 150, 50
"""Of more trials than this many, the curves of so many are drawn: more cannot be told apart."""
MAX_CLEAR = 200
"""Of more trials than this, marks are small and have no outline."""


@dataclass(frozen=True)
class Entry:
    """A trial on the page."""

    label: str
    """Its number, behind the letter of its search where there are several."""
    search: str
    """The letter; empty if there is one search."""
    trial: TrialResult
    is_best: bool
    """Whether it is the best of its search."""


@dataclass(frozen=True)
class Board:
    """The trials of a page, and what holds for all of them."""

    metric: str
    """By which trials are compared."""
    mode: str
    """`min` or `max`."""
    entries: tuple[Entry, ...]
    """In the order of searches and of numbers."""
    names: tuple[str, ...]
    """All parameters that are searched."""

    @cached_property
    def started(self) -> tuple[Entry, ...]:
        """The trials that have reported something."""
        return tuple(entry for entry in self.entries if entry.trial.results)

    @cached_property
    def colour_by(self) -> str:
        """What colours the trials: their search, or stage two's learning rate, or else the last parameter."""
        if any(entry.search for entry in self.entries):
            return "search"
        rates = [name for name in self.names if name.startswith("second_stage.") and name.endswith(".lr")]
        return (rates or list(self.names) or [""])[-1]

    @cached_property
    def colours(self) -> dict[str, str]:
        """The colour of each value of `colour_by`, as text."""
        if self.colour_by == "search":
            return series_colours(list(dict.fromkeys(entry.search for entry in self.started)))
        valued = [entry for entry in self.started if self.colour_by in entry.trial.config]
        return series_colours([value_text(value) for value in distinct_values(valued, self.colour_by)])

    @property
    def several(self) -> bool:
        """Whether these are trials of several searches."""
        return self.colour_by == "search"

    def colour(self, entry: Entry) -> str:
        """A trial's colour; that of text for one that has not the value, such as a baseline."""
        return self._colour_of[entry.label]

    @cached_property
    def _colour_of(self) -> dict[str, str]:
        return {entry.label: self.colours.get(self._colour_value(entry), LIGHT.ink) for entry in self.entries}

    def _colour_value(self, entry: Entry) -> str:
        return entry.search if self.several else value_text(entry.trial.config.get(self.colour_by))

    def value(self, entry: Entry) -> float:
        """A trial's metric at its last boundary; infinitely bad if it is not finite or not there."""
        value = entry.trial.metrics.get(self.metric, math.nan)
        return value if math.isfinite(value) else (math.inf if self.mode == "min" else -math.inf)

    def ranked(self, entries: Sequence[Entry]) -> list[Entry]:
        """Trials from the best last value to the worst."""
        return sorted(entries, key=lambda entry: (self.value(entry) * (1 if self.mode == "min" else -1), entry.label))

    @cached_property
    def drawn(self) -> tuple[Entry, ...]:
        """The trials whose curves are drawn: all, or the best ones and the baselines."""
        if len(self.started) <= MAX_LINES:
            return self.started
        kept = [entry for entry in self.started if entry.is_best or entry.trial.role is not Role.SEARCHED]
        labels = {entry.label for entry in kept}
        others = [entry.label for entry in self.ranked(self.started) if entry.label not in labels]
        labels |= set(others[: max(0, NUM_BEST_LINES - len(kept))])
        return tuple(entry for entry in self.started if entry.label in labels)


def board_of(summaries: Sequence[Summary]) -> Board:
    """The trials of one search or of several; the first one's metric counts."""
    letters = search_letters(len(summaries))
    entries = [
        Entry(f"{letter} {trial.number}".strip(), letter, trial, trial is summary.best)
        for letter, summary in zip(letters, summaries, strict=True)
        for trial in summary.trials
    ]
    names = dict.fromkeys(name for summary in summaries for name in summary.search.param_space)
    search = summaries[0].search
    return Board(search.metric, search.mode, tuple(entries), tuple(names))


def search_letters(count: int) -> list[str]:
    """What tells the searches of a page apart: A, B, ..., Z, A2, ...; nothing if there is one."""
    if count == 1:
        return [""]
    return [ascii_uppercase[i % 26] + (str(i // 26 + 1) if i >= 26 else "") for i in range(count)]


def distinct_values(entries: Sequence[Entry], name: str) -> list[Plain]:
    """The values of a parameter, numbers first and in order."""
    values = {value_text(entry.trial.config.get(name)): entry.trial.config.get(name) for entry in entries}.values()
    return sorted(values, key=lambda v: (0, v, "") if isinstance(v, int | float) else (1, 0, value_text(v)))
