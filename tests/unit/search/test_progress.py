"""What is known of trials while they run."""

from ray.tune.experiment import Trial

from latentsync_ray.report.trials import Boundary, TrialResult, TrialStatus
from latentsync_ray.search.progress import Progress
from latentsync_ray.search.reported import Reported

ROOT = "root"


def new_trial(number: int) -> Trial:
    return Trial("trial", stub=True, trial_id=f"a1b2_{number:05d}", config={"second_stage.optimizer.lr": 1e-4})


def boundary(end: int, before: str, key: str, at_end: bool = False) -> Boundary:
    stage = "first_stage" if end <= 20 else "second_stage"
    return Boundary(key, before, stage, end, max(0, end - 20), {"val/objective": 1 / end}, at_end)


def report(progress: Progress, trial: Trial, reached: Boundary, cached: bool = False) -> None:
    place = reached.global_step, reached.second_stage_step
    reported = Reported(*place, reached, start_step=reached.global_step - 10, cached=cached)
    progress.on_trial_result(0, [trial], trial, reported.to_result() | {"time_total_s": 1.0})


def test_a_trial_is_followed_to_its_end() -> None:
    progress, trial = Progress(), new_trial(3)
    progress.on_trial_start(0, [trial], trial)
    before = progress.trials[3]
    ends = [boundary(10, ROOT, "a"), boundary(20, "a", "b"), boundary(30, "b", "c", at_end=True)]
    for reached, cached in zip(ends, (True, True, False), strict=True):
        report(progress, trial, reached, cached)
    progress.on_trial_complete(0, [trial], trial)
    asked = {"a": 10, "b": 10, "c": 10}
    finished = TrialResult(3, trial.config, tuple(ends), TrialStatus.FINISHED, "", asked, ("a", "b"))
    assert progress.trials == {3: finished}
    assert (finished.transition_step, finished.num_steps_shared, finished.key) == (20, 20, "c")
    assert before == TrialResult(3, trial.config)  # what was taken before does not change


def test_a_clone_takes_over_the_lineage_of_its_source() -> None:
    progress, source, clone = Progress(), new_trial(0), new_trial(1)
    trunk = [boundary(10, ROOT, "a"), boundary(20, "a", "b"), boundary(30, "b", "c")]
    for reached in trunk:
        report(progress, source, reached)
    report(progress, clone, boundary(10, ROOT, "x"))
    report(progress, clone, boundary(40, "c", "d"))
    assert [reached.key for reached in progress.trials[1].results] == ["a", "b", "c", "d"]
    assert progress.trials[1].asked == {"x": 10, "d": 10}


def test_an_error_says_what_became_of_a_trial() -> None:
    progress, failed, diverged = Progress(), new_trial(0), new_trial(1)
    progress.on_trial_result(0, [], failed, Reported(10, 0, error="boom").to_result())
    progress.on_trial_result(0, [], diverged, Reported(10, 0, error="it is nan", diverged=True).to_result())
    for trial in (failed, diverged):
        progress.on_trial_complete(0, [], trial)
    ends = [(trial.status, trial.error, trial.results) for trial in progress.trials.values()]
    assert ends == [(TrialStatus.FAILED, "boom", ()), (TrialStatus.DIVERGED, "it is nan", ())]


def test_a_trial_that_the_scheduler_ends_is_stopped() -> None:
    progress, trial = Progress(), new_trial(0)
    report(progress, trial, boundary(10, ROOT, "a"))
    progress.on_trial_complete(0, [trial], trial)
    assert progress.trials[0].status == TrialStatus.STOPPED


def test_a_trial_may_fail_before_it_began() -> None:
    """The process that it was to take over is lost; Ray Tune then says nothing of it before."""
    progress, lost = Progress(), new_trial(7)
    progress.on_trial_error(0, [lost], lost)
    assert progress.trials == {7: TrialResult(7, lost.config, status=TrialStatus.FAILED, error="unknown error")}
