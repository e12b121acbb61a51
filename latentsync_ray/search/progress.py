"""Follows the trials of a search while it runs: what each has reported, and what has become of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray import tune

from latentsync_ray.report.trials import TrialLog
from latentsync_ray.search.trial import parameters, trial_number

# What a trial reports itself; Ray Tune adds process ids, times and more.
_REPORTED = ("val/", "train/", "global_step", "second_stage_step", "stage", "cached", "key", "parent", "at_end")


class Progress(tune.Callback):  # type: ignore[misc]
    """Keeps a `TrialLog` for each trial."""

    def __init__(self) -> None:
        self.trials: dict[int, TrialLog] = {}
        self._results: dict[str, dict[str, Any]] = {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial begins; or begins again after a pause, as a clone, or because its process was lost."""
        log = self._log(trial)
        log.parameters, log.status = parameters(trial.config), "running"

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial has reached a boundary, or has ended in an error."""
        log = self._log(trial)
        if "error" in result:
            log.status, log.error = "diverged" if result["diverged"] else "failed", result["error"]
        if "key" not in result:
            return
        reported = {name: value for name, value in result.items() if name.startswith(_REPORTED)}
        log.asked[result["key"]] = result["global_step"] - result["start_step"]
        if result["cached"]:
            log.shared.append(result["key"])
        self._results[result["key"]] = reported
        if log.last.get("key") == result["parent"]:
            log.results.append(reported)
        else:
            log.results = self._lineage(result["key"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has ended, by itself or by the scheduler's decision."""
        log = self._log(trial)
        if log.status == "running":
            log.status = "finished" if log.last.get("at_end") else "stopped"

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has failed for good, perhaps before it began: a process that it was to take over may be lost."""
        log = self._log(trial)
        log.status, log.error = "failed", error_lines(trial)[-1]

    def _log(self, trial: Any) -> TrialLog:
        number = trial_number(trial.trial_id, trial.config)
        return self.trials.setdefault(number, TrialLog(number, parameters(trial.config)))

    def _lineage(self, key: str) -> list[dict[str, Any]]:
        """The results from the first boundary to this one; a clone's begin with those of its source."""
        results = []
        while key in self._results:
            results.append(self._results[key])
            key = self._results[key]["parent"]
        return results[::-1]


def error_lines(trial: Any) -> list[str]:
    """What Ray Tune has written of a trial's failures; its own reader looks where that comes to lie later."""
    noted = trial.run_metadata.error_filename is not None
    text = Path(trial.error_file).read_text(encoding="utf-8") if noted else ""
    return text.strip().splitlines() or ["unknown error"]
