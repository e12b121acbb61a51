"""The results of a search, for Python: the best trial, a table, the curves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentsync_ray.config.errors import UserError
from latentsync_ray.report.trials import TrialLog, read_trials
from latentsync_ray.store import DamagedEntryError, Store

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class TrialResult:
    """What became of one trial."""

    number: int
    """In the order of creation."""
    config: dict[str, Any]
    """The values that the search has given to the recipe, by dotted name."""
    metrics: dict[str, float]
    """At the trial's end: `val/*`, and `train/*` of its last segment."""
    status: str
    """finished, stopped (by the scheduler), diverged, failed, unfinished (at a budget)."""
    transition_step: int | None
    """global_step at which the trial left stage one, if it has."""
    global_step: int
    """Its end."""
    key: str | None
    """Key of its last segment, for `export --segment` and `train --from`."""
    error: str
    """Why it diverged or failed; empty otherwise."""


class Results:
    """The results of a search.

    Args:
        folder: Folder or URI that the search has printed.
        exit_status: Of the call that has just run it (0, 1 if a trial has failed or none has run to its end, 3 if a
            budget was used up before the end); 0 if it was opened later.
    """

    def __init__(self, folder: str, exit_status: int = 0):
        self.folder, self.exit_status = folder, exit_status

    @cached_property
    def _found(self) -> tuple[dict[int, TrialLog], int | None]:
        """The trials, and the number of the best; read when they are first asked for."""
        try:
            found = read_trials(*find_results(self.folder))
        except DamagedEntryError as error:
            raise UserError(f"{error}; run the search again") from None
        if found is None:
            raise UserError(f"{self.folder}: has no results yet; let the search end")
        return found

    @property
    def _logs(self) -> dict[int, TrialLog]:
        return self._found[0]

    def __len__(self) -> int:
        """How many trials there are."""
        return len(self._logs)

    def __iter__(self) -> Iterator[TrialResult]:
        """The trials in the order of creation."""
        return (_result(self._logs[number]) for number in sorted(self._logs))

    def get_best_result(self) -> TrialResult:
        """The best trial by the search's metric, among those that ran to their ends.

        Raises:
            UserError: None did.
        """
        best = self._found[1]
        if best is None:
            raise UserError(f"{self.folder}: no trial has run to its end, so that none is the best")
        return _result(self._logs[best])

    def get_dataframe(self) -> pd.DataFrame:
        """A row for each trial: `trial`, `status`, its values, `transition_step`, `global_step`, metrics, `key`."""
        import pandas as pd

        rows = [
            {
                "trial": result.number,
                "status": result.status,
                **result.config,
                "transition_step": result.transition_step,
                "global_step": result.global_step,
                **result.metrics,
                "key": result.key,
            }
            for result in self
        ]
        return pd.DataFrame(rows)

    def curves(self) -> pd.DataFrame:
        """A row for each trial and report boundary of its lineage: `trial`, `stage`, `global_step` and metrics."""
        import pandas as pd

        rows = [
            {"trial": number, "stage": seen["stage"], "global_step": seen["global_step"], **_metrics(seen)}
            for number in sorted(self._logs)
            for seen in self._logs[number].results
        ]
        return pd.DataFrame(rows)


def _result(log: TrialLog) -> TrialResult:
    last = log.last
    return TrialResult(
        number=log.number,
        config=dict(log.parameters),
        metrics=_metrics(last),
        status=log.status,
        transition_step=log.transition_step,
        global_step=last.get("global_step", 0),
        key=last.get("key"),
        error=log.error,
    )


def _metrics(reported: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in reported.items() if name.startswith(("val/", "train/"))}


def find_results(results: str) -> tuple[Store, str]:
    """The store of a search, and the search's folder below the store's root.

    Args:
        results: What the search has printed last, a folder or a URI.

    Raises:
        UserError: It is no such thing.
    """
    if "://" in results:
        place, mark, options = results.partition("?")
    else:
        place, mark, options = str(Path(results).resolve()), "", ""
    root, _, search = place.rstrip("/").rpartition("/searches/")
    if not root or not search or "/" in search:
        raise UserError(f"{results}: must be a folder that a search has printed last; correct the path")
    return Store(f"{root}{mark}{options}"), f"searches/{search}"
