"""Ray Tune's ASHA and HyperBand for trials of different lengths, and for trials that diverge or fail."""

from __future__ import annotations

from typing import Any

from ray.tune.schedulers import ASHAScheduler, HyperBandScheduler

from latentsync_ray.cluster.ray_internals import OpenBrackets, forget_scores
from latentsync_ray.search.reported import Reported, TuneResult


class ASHA(ASHAScheduler):  # type: ignore[misc]
    """Forgets a trial that has diverged or failed: its scores from before would stop others for nothing."""

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: TuneResult) -> None:
        """Counts the last result, unless it is an error's."""
        if Reported.from_result(result).error:
            forget_scores(self, trial.trial_id)
        else:
            super().on_trial_complete(tune_controller, trial, result)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Forgets what the trial has scored."""
        forget_scores(self, trial.trial_id)


class HyperBand(OpenBrackets, HyperBandScheduler):  # type: ignore[misc]
    """Lets the survivors of a cohort run to their own ends, and a cohort go on when one of it has ended.

    Ray Tune's own looks at a cohort when a trial leaves it by itself, but never again after the first halving, so
    that those that are paused would wait for ever for one that is gone.
    """

    def __init__(self, **settings: Any):
        super().__init__(**settings, stop_last_trials=False)
