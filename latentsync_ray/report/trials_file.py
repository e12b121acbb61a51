"""`trials.json`: what became of a search's trials, kept beside its other results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from latentsync_ray.core.baselines import Role
from latentsync_ray.report.trials import Boundary, TrialResult, TrialStatus
from latentsync_ray.store import TRIALS_FILE, DamagedEntryError, Store

_ENDED = (TrialStatus.FINISHED, TrialStatus.STOPPED, TrialStatus.DIVERGED)


def write_trials(
    store: Store, folder: str, trials: Sequence[TrialResult], best: TrialResult | None, keep_first_stage_from: int
) -> None:
    """Keeps what became of a search's trials. As long as there are none, the search has begun and not ended.

    Args:
        store: Where the search is kept.
        folder: The search's folder below the store's root.
        trials: In the order of creation.
        best: The best of them, if any has run to its end.
        keep_first_stage_from: Stage-one states from this global_step on are kept, since a branch may start there.
    """
    values = {
        "best": best and best.number,
        "keep_first_stage_from": keep_first_stage_from,
        "trials": [asdict(trial) for trial in trials],
    }
    store.write_json(f"{folder}/{TRIALS_FILE}", values)


def read_trials(store: Store, folder: str) -> tuple[list[TrialResult], TrialResult | None] | None:
    """A search's trials in the order of creation, and the best if any has run to its end; None if it has not ended.

    Raises:
        DamagedEntryError: The file is not what was written.
    """
    values = store.read_json(f"{folder}/{TRIALS_FILE}")
    if values is None or not values["trials"]:
        return None
    trials = [trial_from_plain(trial) for trial in values["trials"]]
    return trials, next((trial for trial in trials if trial.number == values["best"]), None)


def trial_from_plain(values: Mapping[str, Any]) -> TrialResult:
    """The trial that these plain values stand for."""
    read = {
        "results": tuple(Boundary(**point) for point in values["results"]),
        "status": TrialStatus(values["status"]),
        "shared": tuple(values["shared"]),
        "role": Role(values["role"]),
    }
    return TrialResult(**{**values, **read})


def read_finished(store: Store, folder: str) -> list[TrialResult] | None:
    """The trials of a search that has ended before without a failure, if what they stand on is still in the store.

    Args:
        store: Where the search is kept.
        folder: The search's folder below the store's root.
    """
    try:
        found = read_trials(store, folder)
    except DamagedEntryError as error:
        print(f"{error}; the search runs again and finds what it can use", flush=True)
        return None
    if found is None:
        return None
    trials, _ = found
    if any(trial.status not in _ENDED or trial.key is None for trial in trials):
        return None
    try:
        records = [store.read_record(trial.key) for trial in trials if trial.key is not None]
    except DamagedEntryError:
        return None  # the search runs again, and says which it was
    return None if None in records else trials
