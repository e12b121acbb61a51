"""A search that is run again decides as it did before, in whatever order results arrive."""

from pathlib import Path

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from latentsync_ray.search.journal import Journal
from latentsync_ray.search.schedulers import JournaledScheduler
from latentsync_ray.store import Store

FOLDER = "searches/demo/journal"
LOSSES = {0: 1.0, 1: 2.0, 2: 3.0, 3: 0.5}
Decisions = dict[tuple[int, int], str]


def asha() -> ASHAScheduler:
    scheduler = ASHAScheduler(time_attr="global_step", max_t=80, grace_period=20, reduction_factor=2)
    scheduler.set_search_properties("val/objective", "min")
    return scheduler


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
            result = {"global_step": step, "val/objective": LOSSES[number], "training_iteration": step // 20}
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
