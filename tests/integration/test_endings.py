"""Every trial scheduler over trials that differ in length, that diverge, and both: a search ends, and ends right."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import ROOT

import latentsync_ray

pytestmark = pytest.mark.slow

LR, NUM_STEPS = "second_stage.optimizer.lr", "second_stage.num_steps"
HALVING = {"grace_period": 4, "reduction_factor": 2}
POPULATION = {"perturbation_interval": 4, "quantile_fraction": 0.5}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "fifo": {"name": "fifo"},
    "asha": {"name": "asha", **HALVING},
    "promotion": {"name": "asha", "promote": True, **HALVING},
    "hyperband": {"name": "hyperband", "reduction_factor": 3},
    "pbt": {"name": "pbt", **POPULATION},
    "pb2": {"name": "pb2", **POPULATION, "time_attr": "global_step"},
}
IN_SHORT = ("asha", "hyperband", "pbt")
"""Schedulers that are tried every time; `make soak` tries all of them in all cases."""
DIVERGING = {"diverging": {"nan_above": 0.9}, "both": {"explode_above": 0.9}}
"""With learning rates of 0.01, 0.05 and 0.1: never, at step 19 and at step 10 of stage two."""


def space_of(scheduler: str, case: str) -> dict[str, Any]:
    """What is searched; where only ranges can be, thresholds make the lengths."""
    if scheduler == "pb2":
        thresholds = {} if case == "diverging" else {"transition.below.value": {"uniform": [0.2, 1.2]}}
        return {"param_space": {LR: {"uniform": [0.005, 0.1]}, **thresholds}, "num_samples": 4}
    rates, lengths = {
        "lengths": ([0.01], [8, 16, 24]),  # as good as each other as far as they go
        "diverging": ([0.01, 0.05, 0.1], [24]),
        "both": ([0.01, 0.1], [8, 24]),
    }[case]
    return {"param_space": {LR: {"grid": rates}, NUM_STEPS: {"grid": lengths}}}


@pytest.mark.parametrize(
    "case", ["both", *(pytest.param(case, marks=pytest.mark.soak) for case in ("lengths", "diverging"))]
)
@pytest.mark.parametrize(
    "scheduler", [name if name in IN_SHORT else pytest.param(name, marks=pytest.mark.soak) for name in SCHEDULERS]
)
def test_a_search_ends_right(scheduler: str, case: str, cluster: None, make_search: Any, run_search: Any) -> None:
    if scheduler == "pb2" and importlib.util.find_spec("sklearn") is None:
        pytest.skip("scikit-learn is not installed")
    space = make_search(
        **space_of(scheduler, case),
        stage={"second_stage": DIVERGING.get(case, {})},
        trial_scheduler=SCHEDULERS[scheduler],
        max_concurrent_trials=2,
        workers={"max_groups": 1, "idle_seconds": 600},
        overrides={"transition.at_step": None} if scheduler == "pb2" and case != "diverging" else {},
    )
    outcome = run_search(space, *([] if scheduler != "pb2" else ["second_stage.num_steps=24"]))
    values = json.loads((outcome.folder / "trials.json").read_text())
    trials = {trial["number"]: trial for trial in values["trials"]}
    statuses = {trial["status"] for trial in trials.values()}

    assert statuses <= {"finished", "stopped", "diverged"}
    assert ("diverged" in statuses) <= (case != "lengths")
    assert outcome.exit_status == (0 if "finished" in statuses else 1)
    assert outcome.summary["best"] is None or outcome.summary["best"]["status"] == "finished"
    if case == "lengths" or scheduler in ("fifo", "promotion"):  # nobody diverges, or a place is freed
        assert "finished" in statuses
    if case == "lengths" and scheduler in ("asha", "hyperband"):  # nobody is worse than another
        assert statuses == {"finished"}
    if scheduler in ("fifo", "pbt", "pb2"):
        assert "stopped" not in statuses

    for trial in trials.values():
        last = trial["results"][-1]
        if trial["status"] == "finished":
            assert last["second_stage_step"] == trial["config"].get(NUM_STEPS, 24)
        if trial["status"] == "stopped":  # for its score: one that was no worse there has gone beyond
            step, score = last["second_stage_step"], last["metrics"]["val/objective"]
            rivals = [other for other in trials.values() if other is not trial]
            assert any(beyond(other, step) and score_at(other, step) <= score for other in rivals), trial


def score_at(trial: dict[str, Any], step: int) -> float:
    scores = [r["metrics"]["val/objective"] for r in trial["results"] if r["second_stage_step"] == step]
    return scores[0] if scores else float("inf")


def beyond(trial: dict[str, Any], step: int) -> bool:
    return trial["status"] == "diverged" or trial["results"][-1]["second_stage_step"] > step


def test_draws_that_break_a_rule_fail_in_one_line(cluster: None, make_search: Any, run_search: Any) -> None:
    """Of the four combinations of two values each, steps of 4 in segments of 8 are none."""
    drawn = {NUM_STEPS: {"choice": [4, 8]}, "second_stage.report_every_steps": {"choice": [4, 8]}}
    space = make_search(param_space=drawn, num_samples=6, max_concurrent_trials=2)
    outcome = run_search(space)
    values = json.loads((outcome.folder / "trials.json").read_text())
    wrong = {
        trial["number"]
        for trial in values["trials"]
        if trial["config"] == {NUM_STEPS: 4, "second_stage.report_every_steps": 8}
    }
    assert wrong and outcome.exit_status == 1
    for trial in values["trials"]:
        assert trial["status"] == ("failed" if trial["number"] in wrong else "finished")
    rule = "second_stage.num_steps: must be a positive multiple of report_every_steps (8), got 4"
    assert all(values["trials"][number]["error"].startswith(f"param_space: {rule}") for number in wrong)
    again = run_search(space)  # it is not finished, and the same draws fail again
    assert again.exit_status == 1 and again.trials == outcome.trials and again.executed == outcome.executed


@pytest.mark.parametrize(
    "space",
    [
        {NUM_STEPS: {"grid": [8, 16, 24]}},
        pytest.param(
            {
                NUM_STEPS: {"grid": [8, 24]},
                "second_stage.report_every_steps": {"grid": [2, 8]},
                LR: {"grid": [0.01, 0.02]},
            },
            marks=pytest.mark.soak,
        ),
        pytest.param(
            {"transition.at_step": {"grid": [4, 12]}, "first_stage.report_every_steps": {"grid": [2, 4]}},
            marks=pytest.mark.soak,
        ),
        pytest.param("truth", marks=pytest.mark.soak),
    ],
    ids=["lengths", "segments", "thresholds", "truth"],
)
def test_a_plan_has_the_steps_that_a_search_trains(
    space: dict[str, Any] | str, cluster: None, make_search: Any, run_search: Any
) -> None:
    """Of the shipped search spaces `truth` alone does not adapt."""
    shipped = yaml.safe_load((ROOT / "search_spaces" / "truth.yaml").read_text())
    ours = {
        name: value for name, value in shipped["overrides"].items() if not name.startswith(("data.", "validation."))
    }
    values = {"param_space": shipped["param_space"], "overrides": ours}
    written = make_search(**(values if space == "truth" else {"param_space": space}), max_concurrent_trials=2)
    if space == "truth":  # its thresholds have to lie between the recipe's own bounds, that of the recipe itself too
        recipe = written.parent / "recipe" / "recipe.yaml"
        bounds = {"at_step": 40, "min_step": 40, "max_step": 200}
        recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | {"transition": bounds}))
    plan = latentsync_ray.load_search(written).plan()
    outcome = run_search(written)
    assert outcome.exit_status == 0
    distinct = plan.segments.values()
    asked = [segment for trial in plan.trials for segment in trial.walk()]
    assert outcome.summary["steps_distinct"] == sum(segment.num_steps for segment in distinct)
    assert outcome.summary["steps_without_sharing"] == sum(segment.num_steps for segment in asked)
    assert len(outcome.executed) == len(distinct)


@pytest.mark.soak
def test_a_reader_that_goes_ends_printing_and_nothing_else(make_search: Any, tmp_path: Path) -> None:
    space = make_search(stage={"second_stage": {"step_seconds": 0.5}}, workers={"max_groups": 1})
    command = [sys.executable, "-m", "latentsync_ray.tune", str(space), f"storage={tmp_path / 'results'}"]

    def read_until(beginning: str, *arguments: str) -> tuple[str, int]:
        """Reads the command's output up to a line, and goes. Returns its standard error and its exit status."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        environment = {**os.environ, "RAY_ADDRESS": "local"}
        with subprocess.Popen([*command, *arguments], env=environment, **pipes) as process:
            read = [""]
            while not read[-1].startswith(beginning):
                read.append(process.stdout.readline())
                assert read[-1], read  # it has ended without such a line
            process.stdout.close()
            return process.stderr.read(), process.wait(timeout=300)

    errors, status = read_until("dashboard: ", "budget.wall_hours=0.0005")  # reached while stage two is trained
    assert status == 3 and "Traceback" not in errors
    assert read_until(" ") == ("", 0)  # the first line, which says that Ray starts
    assert read_until("this search is finished") == ("", 0)
