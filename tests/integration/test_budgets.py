"""A search that a budget stops goes on with a higher one, and ends as if nothing had been."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.soak]


def test_a_search_in_slices_ends_as_one_in_one_go(cluster: None, make_search: Any, run_search: Any) -> None:
    slow = {stage: {"step_seconds": 0.4} for stage in ("first_stage", "second_stage")}
    grid = {"transition.at_step": {"grid": [4, 8]}, "second_stage.optimizer.lr": {"grid": [0.001, 0.01]}}
    space = make_search(stage=slow, param_space=grid, workers={"max_groups": 1}, max_concurrent_trials=2)

    slices: list[Any] = []
    while not slices or slices[-1].exit_status == 3:
        assert len(slices) < 12, "it does not get on"
        spent = json.loads((slices[-1].folder / "spent.json").read_text())["worker_seconds"] if slices else 0
        slices.append(run_search(space, f"budget.gpu_hours={(spent + 6) / 3600}"))
        summary = slices[-1].summary
        if slices[-1].exit_status == 3:
            assert summary["stopped_by"].startswith("budget.gpu_hours")
            assert summary["trials"] == 4 and summary["trials_by_status"]["unfinished"] > 0
            assert summary["steps_unfinished"] > 0
    last = slices[-1]
    trials, executed = last.trials, last.executed
    assert len(slices) > 2 and last.exit_status == 0
    assert len({outcome.folder for outcome in slices}) == 1  # a budget does not make another search
    assert executed == sorted(set(executed))  # what was begun was finished, nothing twice

    clean = run_search(space, store="undisturbed")
    assert trials == clean.trials
    assert executed == clean.executed
    again = run_search(space, "budget.gpu_hours=1e-6")  # it is finished, whatever the budget
    assert again.exit_status == 0
    assert again.trials == clean.trials


def test_a_budget_that_is_used_up_already_changes_nothing(cluster: None, make_search: Any, run_search: Any) -> None:
    space = make_search(stage={"first_stage": {"step_seconds": 0.4}}, workers={"max_groups": 1})
    first = run_search(space, "budget.wall_hours=0.0001")
    assert first.exit_status == 3
    before = {file: file.read_bytes() for file in first.folder.rglob("*") if file.is_file()}
    assert run_search(space, "budget.wall_hours=0.0001").exit_status == 3
    assert {file: file.read_bytes() for file in first.folder.rglob("*") if file.is_file()} == before
