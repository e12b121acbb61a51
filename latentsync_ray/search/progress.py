"""Follows the trials of a search while it runs: what each has reported, and what has become of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from ray import tune

from latentsync_ray.cluster.ray_internals import trial_error_lines
from latentsync_ray.report.trials import Boundary, TrialResult, TrialStatus
from latentsync_ray.search.reported import Reported, TuneResult, with_report
from latentsync_ray.search.trial import parameters, trial_number


class TrialLog(Protocol):
    """Writes down what trials come to, TensorBoard for one."""

    def follow(self, trial: TrialResult) -> None:
        """Takes note of what is known of a trial now.

        It is called whenever that changes, from several threads. A trial that is gone through again is told again.
        """


class Progress(tune.Callback):  # type: ignore[misc]
    """Keeps a `TrialResult` of each trial; what was taken from it before does not change.

    Args:
        logs: Are told of every change.
    """

    def __init__(self, logs: Sequence[TrialLog] = ()) -> None:
        self._logs = logs
        self.trials: dict[int, TrialResult] = {}
        """The search's own."""
        self.beside: dict[int, TrialResult] = {}
        """Baselines and confirming ones."""
        self._reached: dict[str, Boundary] = {}

    @property
    def all(self) -> list[TrialResult]:
        """All trials, the search's own first."""
        return [*self.trials.values(), *self.beside.values()]

    def keep_beside(self, trial: TrialResult) -> None:
        """Keeps what is known of a trial that is not the search's own."""
        self.beside[trial.number] = trial
        self._tell(trial)

    def __getstate__(self) -> dict[str, object]:
        """Nothing: Ray Tune writes a copy into files that nobody reads."""
        return {}

    def begin_again(self) -> None:
        """The search's own trials go through what they went through."""
        self.trials.clear()
        self._reached.clear()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial begins; or begins again after a pause, as a clone, or because its process was lost."""
        self._keep(replace(self._known(trial), config=parameters(trial.config), status=TrialStatus.RUNNING))

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: TuneResult, **info: Any) -> None:
        """A trial has reached a boundary, or has ended in an error."""
        known, reported = self._known(trial), Reported.from_result(result)
        reached, results = reported.boundary, known.results
        if reached is not None:
            self._reached[reached.key] = reached
            results = (*results, reached) if known.key == reached.parent else self._lineage(reached)
        self._keep(with_report(known, reported, results))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has ended, by itself or by the scheduler's decision."""
        known = self._known(trial)
        if known.status == TrialStatus.RUNNING:
            at_end = known.last is not None and known.last.at_end
            self._keep(replace(known, status=TrialStatus.FINISHED if at_end else TrialStatus.STOPPED))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has failed for good, perhaps before it began: a process that it was to take over may be lost."""
        self._keep(replace(self._known(trial), status=TrialStatus.FAILED, error=trial_error_lines(trial)[-1]))

    def _known(self, trial: Any) -> TrialResult:
        number = trial_number(trial.trial_id, trial.config)
        return self.trials.get(number) or TrialResult(number, parameters(trial.config))

    def _keep(self, trial: TrialResult) -> None:
        self.trials[trial.number] = trial
        self._tell(trial)

    def _tell(self, trial: TrialResult) -> None:
        for log in self._logs:
            log.follow(trial)

    def _lineage(self, end: Boundary) -> tuple[Boundary, ...]:
        """The results from the first boundary to this one; a clone's begin with those of its source."""
        results = [end]
        while results[-1].parent in self._reached:
            results.append(self._reached[results[-1].parent])
        return tuple(results[::-1])
