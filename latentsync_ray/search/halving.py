"""Ray Tune's ASHA and HyperBand for trials of different lengths, and for trials that diverge or fail."""

from __future__ import annotations

from typing import Any

from ray.tune.schedulers import ASHAScheduler, HyperBandScheduler


class ASHA(ASHAScheduler):  # type: ignore[misc]
    """Forgets a trial that has diverged or failed: its scores from before would stop others for nothing."""

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Counts the last result, unless it is an error's."""
        if "error" in result:
            self._forget(trial)
        else:
            super().on_trial_complete(tune_controller, trial, result)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Forgets what the trial has scored."""
        self._forget(trial)

    def _forget(self, trial: Any) -> None:
        for _, scores in self._trial_info.pop(trial.trial_id)._rungs:
            scores.pop(trial.trial_id, None)


class HyperBand(HyperBandScheduler):  # type: ignore[misc]
    """Lets the survivors of a cohort run to their own ends, and a cohort go on when one of it has ended.

    Ray Tune's own looks at a cohort when a trial leaves it by itself, but never again after the first halving, so
    that those that are paused would wait for ever for one that is gone.
    """

    def __init__(self, **settings: Any):
        super().__init__(**settings, stop_last_trials=False)

    def _process_bracket(self, tune_controller: Any, bracket: Any) -> str:
        action = str(super()._process_bracket(tune_controller, bracket))
        bracket.is_being_processed = False  # only meant to keep the trials that it stops from processing it again
        return action
