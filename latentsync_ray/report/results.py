"""The results of a search, for Python: the best trial, a table, the curves."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from latentsync_ray.config.errors import UserError
from latentsync_ray.report.trials import TrialResult
from latentsync_ray.report.trials_file import read_trials
from latentsync_ray.store import DamagedEntryError, Store

if TYPE_CHECKING:
    import pandas as pd


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
    def _found(self) -> tuple[list[TrialResult], TrialResult | None]:
        """The trials in the order of creation, and the best; read when they are first asked for."""
        try:
            found = read_trials(*find_results(self.folder))
        except DamagedEntryError as error:
            raise UserError(f"{error}; run the search again") from None
        if found is None:
            raise UserError(f"{self.folder}: has no results yet; let the search end")
        return found

    def __len__(self) -> int:
        """How many trials there are."""
        return len(self._found[0])

    def __iter__(self) -> Iterator[TrialResult]:
        """The trials in the order of creation."""
        return iter(self._found[0])

    def get_best_result(self) -> TrialResult:
        """The best trial by the search's metric, among those that ran to their ends.

        Raises:
            UserError: None did.
        """
        best = self._found[1]
        if best is None:
            raise UserError(f"{self.folder}: no trial has run to its end, so that none is the best")
        return best

    def get_dataframe(self) -> pd.DataFrame:
        """A row for each trial: `trial`, `status`, its values, `transition_step`, `global_step`, metrics, `key`."""
        import pandas as pd

        rows = [
            {
                "trial": trial.number,
                "status": str(trial.status),
                **trial.config,
                "transition_step": trial.transition_step,
                "global_step": trial.global_step,
                **trial.metrics,
                "key": trial.key,
            }
            for trial in self
        ]
        return pd.DataFrame(rows)

    def curves(self) -> pd.DataFrame:
        """A row for each trial and report boundary of its lineage: `trial`, `stage`, `global_step` and metrics."""
        import pandas as pd

        rows = [
            {"trial": trial.number, "stage": point.stage, "global_step": point.global_step, **point.metrics}
            for trial in self
            for point in trial.results
        ]
        return pd.DataFrame(rows)


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
