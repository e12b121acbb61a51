"""Ray Tune's ASHA and HyperBand for trials of different lengths, and for trials that diverge or fail."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ray.tune.schedulers import ASHAScheduler, HyperBandScheduler

from latentsync_ray.cluster.ray_internals import OpenBrackets, forget_scores, milestones
from latentsync_ray.search.reported import Reported, TuneResult


class Arrivals:
    """Where trials are on their way past rungs.

    Args:
        time_attr: What rungs count.
        second_stage_grace: Steps of stage two before which a trial does not arrive anywhere.
    """

    def __init__(self, time_attr: str, second_stage_grace: int):
        self._time_attr, self._grace = time_attr, second_stage_grace
        self._times: dict[object, float] = {}

    def new(self, rungs: Iterable[float], trial: object, reported: Reported) -> list[float]:
        """The rungs, lowest first, that a trial has come to since it was looked at last, if it can be judged.

        Args:
            rungs: Their milestones.
            trial: What names the trial.
            reported: Its new result.
        """
        before, now = self._times.get(trial, 0.0), reported.time(self._time_attr)
        self._times[trial] = max(before, now)
        if reported.second_stage_step < self._grace:
            return []
        return sorted(rung for rung in rungs if before < rung <= now)

    def at_any(self, rungs: Iterable[float], trial: object, reported: Reported) -> bool:
        """Whether there is any such rung."""
        return bool(self.new(rungs, trial, reported))


class ASHA(ASHAScheduler):  # type: ignore[misc]
    """Judges trials that have some of stage two, where they come to a rung.

    Forgets a trial that has diverged or failed: its scores from before would stop others for nothing.

    Args:
        time_attr: What rungs count.
        second_stage_grace: A trial is not judged before it has so many steps of stage two. A rung that it has passed
            by then has no score of it, since one from further on would be compared with others' at the rung.
        settings: Of Ray Tune's own.
    """

    def __init__(self, time_attr: str, second_stage_grace: int, **settings: Any):
        super().__init__(time_attr=time_attr, **settings)
        self._arrivals = Arrivals(time_attr, second_stage_grace)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: TuneResult) -> str:
        """Ray Tune's decision at a rung; between rungs the trial goes on."""
        if self._arrivals.at_any(milestones(self), trial.trial_id, Reported.from_result(result)):
            return str(super().on_trial_result(tune_controller, trial, result))
        return str(self.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: TuneResult) -> None:
        """Counts the last result if it is at a rung, unless it is an error's."""
        reported = Reported.from_result(result)
        if reported.error:
            forget_scores(self, trial.trial_id)
        elif self._arrivals.at_any(milestones(self), trial.trial_id, reported):
            super().on_trial_complete(tune_controller, trial, result)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Forgets what the trial has scored."""
        forget_scores(self, trial.trial_id)


class HyperBand(OpenBrackets, HyperBandScheduler):  # type: ignore[misc]
    """Lets the survivors of a cohort run to their own ends, and a cohort go on when one of it has ended.

    Ray Tune's own looks at a cohort when a trial leaves it by itself, but never again after the first halving, so
    that those that are paused would wait for ever for one that is gone.

    Args:
        time_attr: What milestones count.
        second_stage_grace: A trial has come to no milestone before it has so many steps of stage two: the first
            milestones may lie in stage one, where trials that share it are equal.
        settings: Of Ray Tune's own.
    """

    def __init__(self, time_attr: str, second_stage_grace: int, **settings: Any):
        super().__init__(time_attr=time_attr, **settings, stop_last_trials=False)
        self._grace = second_stage_grace

    def on_trial_result(self, tune_controller: Any, trial: Any, result: TuneResult) -> str:
        """Ray Tune's decision; a trial that cannot be judged yet goes on, and its cohort waits for it."""
        if Reported.from_result(result).second_stage_step < self._grace:
            return str(self.CONTINUE)
        return str(super().on_trial_result(tune_controller, trial, result))
