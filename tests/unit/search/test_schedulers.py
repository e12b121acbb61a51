"""A search that is run again decides as it did before, in whatever order results arrive."""

from pathlib import Path

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from latentsync_ray.report.trials import Boundary
from latentsync_ray.search.halving import ASHA, Arrivals, HyperBand
from latentsync_ray.search.journal import Journal
from latentsync_ray.search.promotion import PromotingASHA
from latentsync_ray.search.reported import Reported, TuneResult
from latentsync_ray.search.schedulers import JournaledScheduler
from latentsync_ray.store import Store

FOLDER = "searches/demo/journal"
LOSSES = {0: 1.0, 1: 2.0, 2: 3.0, 3: 0.5}
Decisions = dict[tuple[int, int], str]


def asha() -> ASHAScheduler:
    scheduler = ASHAScheduler(time_attr="global_step", max_t=80, grace_period=20, reduction_factor=2)
    scheduler.set_search_properties("val/objective", "min")
    return scheduler


def result_at(step: int, loss: float, diverged: str | None = None) -> TuneResult:
    boundary = Boundary(f"key-{step}", "parent", "second_stage", step, step, {"val/objective": loss})
    return Reported.reached(boundary, step - 4, cached=False, diverged=diverged).to_result()


def run(
    scheduler: TrialScheduler, experiment: str, arrivals: list[int], steps: tuple[int, ...] = (20, 40)
) -> Decisions:
    """What a scheduler decides if the results of trials arrive in an order."""
    trials = {number: Trial("trial", stub=True, trial_id=f"{experiment}_{number:05d}") for number in LOSSES}
    for trial in trials.values():
        scheduler.on_trial_add(None, trial)
    decisions: Decisions = {}
    for step in steps:
        for number in arrivals:
            result = result_at(step, LOSSES[number]) | {"training_iteration": step // 20}
            decisions[number, step] = scheduler.on_trial_result(None, trials[number], result)
    return decisions


def test_decisions_are_replayed_whatever_the_order_of_results(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    first = run(JournaledScheduler(asha(), Journal(store, FOLDER)), "one", [0, 1, 2, 3])
    assert set(first.values()) == {"CONTINUE", "STOP"}
    assert first == run(asha(), "plain", [0, 1, 2, 3])
    assert first != run(asha(), "plain", [2, 1, 0, 3])

    journaled = JournaledScheduler(asha(), Journal(Store(str(tmp_path)), FOLDER))
    assert run(journaled, "two", [2, 1, 0, 3]) == first


def test_where_the_journal_ends_the_scheduler_decides_and_is_written_down(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    run(JournaledScheduler(asha(), Journal(store, FOLDER)), "one", [0, 1, 2, 3], steps=(20,))
    longer = run(JournaledScheduler(asha(), Journal(store, FOLDER)), "two", [2, 1, 0, 3])
    assert longer == run(asha(), "plain", [0, 1, 2, 3], steps=(20,)) | {
        key: value for key, value in run(asha(), "plain", [2, 1, 0, 3]).items() if key[1] == 40
    }
    assert run(JournaledScheduler(asha(), Journal(store, FOLDER)), "three", [1, 0, 3, 2]) == longer


class Controller:
    """As much of Ray Tune's controller as schedulers use, over trials that train one after another.

    Args:
        scheduler: What decides.
        lengths: Where each trial ends by itself.
        scores: What each reports at every boundary, the less the better.
        diverging: Trial -> step at which it diverges.
        stage_one: Cost of what is before stage two; a step there costs 1.
    """

    def __init__(
        self,
        scheduler: TrialScheduler,
        lengths: list[int],
        scores: list[float],
        diverging: dict[int, int] | None = None,
        stage_one: int = 0,
    ):
        self.search_alg = self
        self.scheduler, self.lengths, self.scores = scheduler, lengths, scores
        self.diverging, self.stage_one = diverging or {}, stage_one
        self.trials = [Trial("trial", stub=True, trial_id=f"a_{number:05d}") for number in range(len(lengths))]
        self.steps = dict.fromkeys(self.trials, 0)
        self.ends: dict[int, str] = {}
        scheduler.set_search_properties("val/objective", "min")
        for trial in self.trials:
            scheduler.on_trial_add(self, trial)

    def get_trials(self) -> list[Trial]:
        return self.trials

    def is_finished(self) -> bool:
        return True

    def stop_trial(self, trial: Trial) -> None:
        if trial.status in (Trial.PAUSED, Trial.PENDING):
            self.scheduler.on_trial_remove(self, trial)
            self._end(trial, "stopped")

    def run(self) -> dict[int, str]:
        """What has become of each trial; one that is missing would have been waited for, for ever."""
        while (trial := self.scheduler.choose_trial_to_run(self)) is not None:
            trial.set_status(Trial.RUNNING)
            while trial.status == Trial.RUNNING:
                self._step(trial)
        return self.ends

    def _step(self, trial: Trial) -> None:
        number = self.trials.index(trial)
        self.steps[trial] += 4
        step = self.steps[trial]
        result = result_at(step, self.scores[number]) | {"cost": self.stage_one + step}
        if step >= self.diverging.get(number, 1000):
            self._complete(trial, result_at(step, self.scores[number], "it is nan"), "diverged")
        elif step >= self.lengths[number]:
            self._complete(trial, result, "finished")
        else:
            decision = self.scheduler.on_trial_result(self, trial, result)
            if decision == TrialScheduler.STOP:
                self._complete(trial, result, "stopped")
            elif decision == TrialScheduler.PAUSE:
                trial.set_status(Trial.PAUSED)

    def _complete(self, trial: Trial, result: TuneResult, end: str) -> None:
        self.scheduler.on_trial_complete(self, trial, result)
        self._end(trial, end)

    def _end(self, trial: Trial, end: str) -> None:
        trial.set_status(Trial.TERMINATED)
        self.ends[self.trials.index(trial)] = end


def test_a_cohort_of_hyperband_goes_on_when_one_of_it_has_ended() -> None:
    # The cohorts hold 4, 6 and 12 trials. Of the last one 4 go on at step 4 and are compared at 8, where two end.
    lengths = [24] * 10 + [24, 24, 8, 8] + [24] * 8
    hyperband = HyperBand("second_stage_step", second_stage_grace=1, max_t=24, reduction_factor=3)
    ends = Controller(hyperband, lengths, [float(number) for number in range(22)]).run()
    assert sorted(ends) == list(range(22))
    assert ends[12] == ends[13] == "finished"
    assert "finished" in (ends[10], ends[11])


def test_survivors_of_hyperband_run_to_their_ends_whatever_lengths_are() -> None:
    hyperband = HyperBand("second_stage_step", second_stage_grace=1, max_t=24, reduction_factor=3)
    assert Controller(hyperband, [8, 16, 24], [1.0, 1.0, 1.0]).run() == dict.fromkeys(range(3), "finished")


def test_hyperband_judges_no_trial_in_stage_one_and_waits_for_none_that_is_beyond_its_milestones() -> None:
    """The cohorts hold 6, 9 and 18 trials; in each the last one is the best.

    The third cohort is halved at 27 and 81, both before a report counts.
    """
    hyperband = HyperBand("cost", second_stage_grace=8, max_t=243, reduction_factor=3)
    controller = Controller(hyperband, [12] * 32, [32.0 - number for number in range(32)], stage_one=100)
    ends = controller.run()
    assert sorted(ends) == list(range(32))
    halved = {"finished": [*range(6), 12, 13, 14, 30, 31], "stopped": [*range(6, 12), *range(15, 30)]}
    assert {end: [number for number in range(32) if ends[number] == end] for end in halved} == halved
    assert {controller.steps[controller.trials[number]] for number in halved["stopped"]} == {8}


def promoting(folder: Path, max_t: int) -> PromotingASHA:
    journal = Journal(Store(str(folder)), FOLDER)
    rungs = [rung for rung in (4, 8, 16, 32) if rung < max_t]
    return PromotingASHA(Arrivals("second_stage_step", 1), rungs, reduction_factor=2, journal=journal)


def test_a_trial_that_diverges_frees_its_place_at_a_rung(tmp_path: Path) -> None:
    # Of four trials at a rung two go on; the best one diverges, so that the next one takes its place.
    controller = Controller(promoting(tmp_path, 8), [8] * 4, [1.0, 2.0, 2.0, 3.0], diverging={0: 8})
    assert controller.run() == {0: "diverged", 1: "finished", 2: "finished", 3: "stopped"}


def test_where_the_only_one_that_went_on_diverges_the_next_goes_on(tmp_path: Path) -> None:
    controller = Controller(promoting(tmp_path, 16), [16] * 3, [1.0, 2.0, 3.0], diverging={0: 12})
    assert controller.run() == {0: "diverged", 1: "finished", 2: "stopped"}


def test_a_trial_that_diverges_is_forgotten_by_asha(tmp_path: Path) -> None:
    scheduler = JournaledScheduler(
        ASHA("second_stage_step", 1, max_t=16, grace_period=4, reduction_factor=2),
        Journal(Store(str(tmp_path)), FOLDER),
    )
    # The first has diverged when the second comes to the rungs, so that this one is the best there.
    controller = Controller(scheduler, [16, 16], [1.0, 2.0], diverging={0: 8})
    assert controller.run() == {0: "diverged", 1: "finished"}


def reported(step: int, second: int) -> Reported:
    return Reported(step, second, cost=step + 1.5 * second)


def test_a_trial_is_judged_at_a_rung_once_it_has_some_of_stage_two() -> None:
    rungs, arrivals = [20.0, 40.0, 80.0], Arrivals("cost", second_stage_grace=8)
    assert arrivals.new(rungs, "a", reported(16, 0)) == []
    assert arrivals.new(rungs, "a", reported(24, 0)) == []  # 20 is passed in stage one, and never judged by
    assert arrivals.new(rungs, "a", reported(28, 4)) == []  # 34, and too little of stage two
    assert arrivals.new(rungs, "a", reported(32, 8)) == [40.0]  # 44
    assert arrivals.new(rungs, "a", reported(32, 8)) == []
    assert arrivals.new(rungs, "b", reported(80, 16)) == rungs
    assert Arrivals("global_step", 8).new(rungs, "a", reported(32, 8)) == [20.0]
    assert Arrivals("second_stage_step", 8).new([4, 8, 16], "a", reported(32, 8)) == [4, 8]


@pytest.mark.parametrize("promote", [False, True])
def test_asha_judges_no_trial_in_stage_one(promote: bool, tmp_path: Path) -> None:
    """Trials of equal cost leave stage one at 8 and at 16; the rung at 12 sees the first kind alone."""
    journal = Journal(Store(str(tmp_path)), FOLDER)
    arrivals = Arrivals("cost", 4)
    scheduler = (
        PromotingASHA(arrivals, [12, 24], 2, journal)
        if promote
        else ASHA("cost", 4, max_t=32, grace_period=12, reduction_factor=2)
    )
    scheduler.set_search_properties("val/objective", "min")
    decisions: dict[tuple[str, int], str] = {}
    for number, (name, leaves_at, loss) in enumerate([("best", 8, 1.0), ("late", 16, 9.0), ("early", 8, 2.0)]):
        trial = Trial("trial", stub=True, trial_id=f"t_{number:05d}")
        scheduler.on_trial_add(None, trial)
        for step in range(4, 32, 4):
            stage = "second_stage" if step > leaves_at else "first_stage"
            second = max(0, step - leaves_at)
            boundary = Boundary(f"{name}-{step}", "", stage, step, second, {"val/objective": loss}, cost=step)
            result = Reported.reached(boundary, step - 4, cached=False).to_result()
            decisions[name, step] = scheduler.on_trial_result(None, trial, result | {"training_iteration": 1})
            if decisions[name, step] != "CONTINUE":
                break
    ended = {name: step for (name, step), decision in decisions.items() if decision != "CONTINUE"}
    # With promotion the first to come waits at the rung too.
    assert ended == ({"best": 12, "late": 24, "early": 12} if promote else {"late": 24, "early": 12})
