"""The journal: a search's decisions, so that the same command decides the same again before it decides anew.

An adaptive scheduler's decisions depend on the order in which results arrive; the segments that they led to are in
the store, and the decisions have to be there too.
"""

from __future__ import annotations

import json
from typing import Any

from ray.tune.schedulers import TrialScheduler

from latentsync_ray.config import UserError
from latentsync_ray.store import Store
from latentsync_ray.trial import trial_identity

_DECISIONS = {TrialScheduler.CONTINUE, TrialScheduler.PAUSE, TrialScheduler.STOP, TrialScheduler.NOOP}


class Journal:
    """Decisions by trial and global_step, one small file each.

    Args:
        store: Where the journal is kept.
        folder: Its folder below the store's root.

    Raises:
        UserError: An entry is damaged.
    """

    def __init__(self, store: Store, folder: str):
        self._store, self._folder = store, folder
        self._decisions: dict[tuple[str, int], str] = {}
        for name in store.list_files(folder):
            if not name.endswith(".json"):
                continue  # a half-written file that a kill has left
            try:
                entry = json.loads(store.read_bytes(f"{folder}/{name}") or b"")
                if entry["decision"] not in _DECISIONS:
                    raise ValueError(entry["decision"])
                self._decisions[str(entry["trial"]), int(entry["global_step"])] = entry["decision"]
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{store.root}/{folder}/{name}: must be a journal entry; delete it") from None

    def lookup(self, trial: str, global_step: int) -> str | None:
        """The decision that was made before, if any."""
        return self._decisions.get((trial, global_step))

    def write(self, trial: str, global_step: int, decision: str) -> None:
        """Keeps a decision."""
        self._decisions[trial, global_step] = decision
        entry = {"trial": trial, "global_step": global_step, "decision": decision}
        self._store.write_json(f"{self._folder}/{trial}-{global_step:09d}.json", entry)


class JournaledScheduler(TrialScheduler):  # type: ignore[misc]
    """A trial scheduler whose decisions are replayed from a journal as far as it goes."""

    def __init__(self, scheduler: TrialScheduler, journal: Journal):
        super().__init__()
        self._scheduler, self._journal = scheduler, journal

    @property
    def metric(self) -> Any:
        """The metric that the scheduler compares."""
        return self._scheduler.metric

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Hands the search's metric on."""
        return bool(self._scheduler.set_search_properties(metric, mode, **spec))

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Hands the event on."""
        self._scheduler.on_trial_add(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Hands the event on."""
        self._scheduler.on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """The decision of before, or the scheduler's; the scheduler sees every result either way."""
        identity, global_step = trial_identity(trial.config, trial.trial_id), result["global_step"]
        decision = str(self._scheduler.on_trial_result(tune_controller, trial, result))
        known = self._journal.lookup(identity, global_step)
        if known is None:
            self._journal.write(identity, global_step, decision)
        return known or decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Hands the event on."""
        self._scheduler.on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Hands the event on."""
        self._scheduler.on_trial_remove(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """The scheduler's choice."""
        return self._scheduler.choose_trial_to_run(tune_controller)

    def debug_string(self) -> str:
        """The scheduler's own words."""
        return f"journaled {self._scheduler.debug_string()}"
