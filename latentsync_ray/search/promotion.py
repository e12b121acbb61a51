"""ASHA that promotes: a trial paused at a rung goes on when it is later among the best there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from latentsync_ray.search.entries import Decision
from latentsync_ray.search.halving import Arrivals
from latentsync_ray.search.journal import Journal
from latentsync_ray.search.reported import Reported, TuneResult
from latentsync_ray.search.trial import parameters, trial_number


@dataclass
class _Rung:
    """A milestone: what trials scored when they came to it, and which of them went on."""

    milestone: float
    scores: dict[int, float] = field(default_factory=dict)
    promoted: set[int] = field(default_factory=set)
    num_arrived: int = 0
    """How many trials have come to it, those among them that have diverged or failed since."""

    def arrive(self, number: int, score: float) -> None:
        """A trial comes to the milestone."""
        self.scores[number] = score
        self.num_arrived += 1

    def forget(self, number: int) -> None:
        """Frees the place of a trial; how many may go on stays as it is, so that another one can take it."""
        self.scores.pop(number, None)
        self.promoted.discard(number)

    def promotable(self, num_places: int) -> list[int]:
        """Trials among the best `num_places` that have not gone on, the best first."""
        best = sorted(self.scores, key=lambda number: (-self.scores[number], number))[:num_places]
        return [number for number in best if number not in self.promoted]


class PromotingASHA(TrialScheduler):  # type: ignore[misc]
    """Asynchronous successive halving with promotion (Li et al. 2020, algorithm 2), of which Ray Tune has half.

    At a rung a trial goes on while it is in the top `1 / reduction_factor` of those that came there; else it is
    paused, which costs nothing, since its state is kept. When nothing runs any more and no paused trial may go on,
    the highest rung that nobody has left lets its best one go on, so that one trial at least comes to its end; then
    all others are stopped.

    Args:
        arrivals: Which of the rungs trials come to.
        rungs: Where they come to be judged, lowest first.
        reduction_factor: Of so many trials at a rung one goes on.
        journal: Decisions of before, which are made again.
    """

    def __init__(self, arrivals: Arrivals, rungs: Iterable[float], reduction_factor: float, journal: Journal):
        super().__init__()
        self._arrivals, self._reduction_factor, self._journal = arrivals, reduction_factor, journal
        self._rungs = [_Rung(milestone) for milestone in rungs]
        self._boundaries: dict[int, int] = {}
        """Trial -> global_step of its last result."""
        self._metric, self._sign = "", 1.0

    @property
    def metric(self) -> str:
        """The metric that is compared."""
        return self._metric

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Takes the search's metric."""
        self._metric, self._sign = metric or "", 1.0 if mode == "max" else -1.0
        return True

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Nothing to do: a trial counts from its first rung."""

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Frees the trial's places."""
        self._forget(trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: TuneResult) -> str:
        """Goes on between rungs; at a rung, among the best."""
        number, reported = trial_number(trial.trial_id, trial.config), Reported.from_result(result)
        global_step = self._boundaries[number] = reported.global_step
        at = self._arrivals.new([rung.milestone for rung in self._rungs], number, reported)
        new = [rung for rung in self._rungs if rung.milestone in at and number not in rung.scores]
        reached = [rung for rung in self._rungs if number in rung.scores or rung in new]
        for rung in new:
            rung.arrive(number, self._sign * reported.metrics[self._metric])
        values = parameters(trial.config)
        known = self._journal.lookup(number, 0, global_step, values)
        if not new and known is None:
            return str(TrialScheduler.CONTINUE)
        highest = reached[-1]
        if known is not None:
            goes_on = known.decision == TrialScheduler.CONTINUE
        else:
            goes_on = number in highest.promotable(self._num_places(highest))
        if goes_on:
            highest.promoted.add(number)
        for passed in reached[:-1]:
            passed.promoted.add(number)
        decision = str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.PAUSE)
        if known is None:
            self._journal.write(Decision(number, 0, global_step, values, decision))
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: TuneResult) -> None:
        """What it scored stays, unless it has diverged or failed: then it frees its places."""
        if Reported.from_result(result).error:
            self._forget(trial)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Nothing to do: what it scored stays."""

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """A paused trial that may go on, those at the highest rung first; else one that has not begun."""
        trials = tune_controller.get_trials()
        paused = {trial_number(t.trial_id, t.config): t for t in trials if t.status == Trial.PAUSED}
        waiting = [trial for trial in trials if trial.status == Trial.PENDING]
        busy = (
            waiting or any(t.status == Trial.RUNNING for t in trials) or not tune_controller.search_alg.is_finished()
        )
        # As long as results of before come in again, a rung that is half full would let others go on than then.
        if not self._journal.replaying or not busy:
            for rung in reversed(self._rungs):
                for number in rung.promotable(self._num_places(rung)):
                    if number in paused:
                        return self._promote(rung, number, paused[number])
        if busy:
            return waiting[0] if waiting else None
        return self._end(tune_controller, paused)

    def _end(self, tune_controller: Any, paused: dict[int, Any]) -> Any:
        """Nothing runs: the highest rung's best goes on if nobody has left it, else all paused trials are stopped."""
        for rung in reversed(self._rungs):
            best = next((number for number in rung.promotable(len(rung.scores)) if number in paused), None)
            if best is not None and not rung.promoted:
                return self._promote(rung, best, paused[best])
        for trial in paused.values():
            tune_controller.stop_trial(trial)
        return None

    def _promote(self, rung: _Rung, number: int, trial: Any) -> Any:
        rung.promoted.add(number)
        decision = str(TrialScheduler.CONTINUE)
        self._journal.write(Decision(number, 0, self._boundaries[number], parameters(trial.config), decision))
        return trial

    def _forget(self, trial: Any) -> None:
        for rung in self._rungs:
            rung.forget(trial_number(trial.trial_id, trial.config))

    def _num_places(self, rung: _Rung) -> int:
        return int(rung.num_arrived / self._reduction_factor)

    def debug_string(self) -> str:
        """The rungs in one line."""
        rungs = (f"{r.milestone:g}: {len(r.promoted)} of {r.num_arrived} went on" for r in self._rungs)
        return "promoting ASHA: " + ", ".join(rungs)
