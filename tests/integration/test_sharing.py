"""Trials train what they have in common once, and get the numbers that they would get alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from latentsync_ray.config.loading import with_overrides
from latentsync_ray.config.searchfiles import load_search
from latentsync_ray.core.course import Course
from latentsync_ray.core.training import code_fingerprint, load_training
from latentsync_ray.core.trial_recipe import TrialRecipe

pytestmark = pytest.mark.slow

GRID = {
    "param_space": {
        "transition.at_step": {"grid": [4, 8, 12, 16]},
        "second_stage.optimizer.lr": {"grid": [0.001, 0.01, 0.02, 0.04]},
    }
}


def enumerate_keys(space: Path, trials: list[dict[str, str]]) -> set[str]:
    """The keys of all segments, from nothing but the recipe and each trial's parameters and lengths."""
    search, recipe = load_search(space, [])
    fingerprints = code_fingerprint(load_training(recipe.training))
    keys = set()
    for trial in trials:
        values = {name: float(trial[name]) for name in search.param_space if name.endswith("lr")}
        values["transition.at_step"] = int(trial["transition_step"] or 16)
        own = TrialRecipe.of(with_overrides(recipe, values))
        course = Course(own, own.root_key(fingerprints))
        while course.last is None or course.last.end_step < int(trial["global_step"]):
            segment = course.next()
            assert segment is not None
            course.passed(segment, {})
            keys.add(segment.key)
    return keys


def enumerate_spans(trials: list[dict[str, str]]) -> set[tuple[Any, ...]]:
    """Which stretches there must be, from nothing but trials.csv: a trunk, and a branch for each trial of its own."""
    spans: set[tuple[Any, ...]] = set()
    for trial in trials:
        end, leave = int(trial["global_step"]), int(trial["transition_step"] or trial["global_step"])
        lr = float(trial["second_stage.optimizer.lr"])
        spans |= {("first_stage", stop) for stop in range(4, leave + 1, 4)}
        spans |= {("second_stage", stop, leave, lr) for stop in range(leave + 4, end + 1, 4)}
    return spans


def trained_spans(outcome: Any) -> list[tuple[Any, ...]]:
    """The same from the records of what workers noted that they train."""
    spans: list[tuple[Any, ...]] = []
    for key in outcome.executed:
        segment = outcome.records[key]["segment"]
        if segment["stage"] == "first_stage":
            spans.append(("first_stage", segment["end_step"]))
        else:
            lr = segment["config"]["optimizer"]["lr"]
            spans.append(("second_stage", segment["end_step"], segment["stage_start_step"], lr))
    return spans


@pytest.mark.parametrize("scheduler", ["fifo", pytest.param("asha", marks=pytest.mark.soak)])
def test_what_trials_share_is_trained_once(scheduler: str, cluster: None, make_search: Any, run_search: Any) -> None:
    space = make_search(
        **GRID, trial_scheduler={"name": scheduler, "grace_period": 4, "reduction_factor": 2}, max_concurrent_trials=6
    )
    outcome = run_search(space)
    trials = outcome.trials
    assert len(trials) == 16 and outcome.exit_status == 0
    executed = outcome.executed
    assert executed == sorted(enumerate_keys(space, trials))  # a list: each exactly once
    assert sorted(trained_spans(outcome)) == sorted(enumerate_spans(trials))

    summary = outcome.summary
    assert summary["steps_without_sharing"] == sum(int(trial["global_step"]) for trial in trials)
    assert summary["steps_trained"] == summary["steps_distinct"] == 4 * len(executed)
    stopped = [trial for trial in trials if trial["status"] == "stopped"]
    assert bool(stopped) == (scheduler == "asha")

    # The same command again: everything is found, and every decision is the same.
    (outcome.folder / "trials.json").unlink()  # as if it had not ended: the journal is replayed
    again = run_search(space)
    assert again.executed == executed
    assert again.trials == trials
    assert again.summary["steps_trained"] == 0


def test_sharing_does_not_change_a_bit(cluster: None, make_search: Any, run_search: Any) -> None:
    grid = {
        "transition.at_step": {"grid": [4, 8]},
        "second_stage.optimizer.lr": {"grid": [0.0002, 0.001]},
    }
    space = make_search(trivial=False, param_space=grid, max_concurrent_trials=2)
    shared = run_search(space, "second_stage.num_steps=4")
    alone = run_search(space, "second_stage.num_steps=4", "share=false", store="alone")
    assert len(alone.executed) > len(shared.executed)
    assert shared.results == alone.results
    assert shared.weights == alone.weights
    assert len(set(shared.weights)) == 4  # the trials do differ


@pytest.mark.soak
def test_each_trial_is_trained_under_its_own_seed(cluster: None, make_search: Any, run_search: Any) -> None:
    together = run_search(make_search(param_space={"seed": {"grid": [3, 4]}}), store="together")
    apart = run_search(make_search(), "seed=4", store="apart")
    assert together.weights[1] == apart.weights[0] != together.weights[0]


@pytest.mark.soak
def test_a_wide_trunk_and_narrow_branches(cluster: None, make_search: Any, run_search: Any) -> None:
    """Two workers train the trunk on all CPUs, and make room for branches of one worker each, however patient."""
    rates = {"second_stage.optimizer.lr": {"grid": [0.01, 0.02, 0.04]}}
    space = make_search(param_space=rates, workers={"idle_seconds": 3600})
    outcome = run_search(space, "first_stage.num_workers=2")
    assert outcome.exit_status == 0 and [trial["status"] for trial in outcome.trials] == ["finished"] * 3
    assert outcome.executed == sorted(set(outcome.records))
    widths = {(r["segment"]["stage"], r["segment"]["config"]["num_workers"]) for r in outcome.records.values()}
    assert widths == {("first_stage", 2), ("second_stage", 1)}


@pytest.mark.soak
def test_a_longer_search_trains_only_what_is_new(cluster: None, make_search: Any, run_search: Any) -> None:
    space = make_search()
    before = run_search(space, "second_stage.num_steps=4").executed
    longer = run_search(space, "second_stage.num_steps=12")
    assert Counter(before) <= Counter(longer.executed)
    assert len(longer.executed) - len(before) == 2
    assert longer.executed == sorted(set(longer.executed))


@pytest.mark.soak
def test_two_workers_and_micro_batches_get_what_one_worker_gets(
    cluster: None, make_search: Any, run_search: Any
) -> None:
    """Same global batch: 4 samples on one worker, or 2 micro-batches of 1 on each of two."""
    settings = ["transition.at_step=4", "second_stage.num_steps=4"]
    for stage in ("first_stage", "second_stage"):
        settings += [f"{stage}.batch_size=4", f"{stage}.optimizer.lr=1e-5"]
    one = run_search(make_search(trivial=False), *settings, store="one")
    for stage in ("first_stage", "second_stage"):
        settings += [f"{stage}.num_workers=2", f"{stage}.gradient_accumulation_steps=2"]
    two = run_search(make_search(trivial=False, workers={"max_groups": 1}), *settings, store="two")
    for name in ("val/recon", "val/sync", "val/lpips", "val/trepa", "train/loss"):
        assert float(two.trials[0][name]) == pytest.approx(float(one.trials[0][name]), rel=1e-5), name
