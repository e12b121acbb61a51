"""The other commands, as README has them: one run, the best recipe again, a search of convergence, an export."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import Outcome, results_folder
from trivial import TrivialTraining

from latentsync_ray import export, train
from latentsync_ray.config.loading import load_recipe

pytestmark = pytest.mark.slow


def test_one_run_and_the_best_recipe_again(
    cluster: None, make_search: Any, run_search: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(recipe: Path) -> Outcome:
        status = train.main([str(recipe), f"storage={tmp_path / 'results'}"])
        return Outcome(
            results_folder(capsys.readouterr().out),
            tmp_path / "results",
            status,
        )

    make_search()
    outcome = run(tmp_path / "recipe")
    assert outcome.exit_status == 0
    (trial,) = outcome.trials
    assert (trial["transition_step"], trial["global_step"]) == ("8", "16")
    executed = outcome.executed
    assert len(executed) == 4

    # What a loop without anything around it gives, with stage two's steps counted from its own beginning.
    recipe = load_recipe(tmp_path / "recipe")
    plain = TrivialTraining(SimpleNamespace(seed=recipe.seed, rank=0, world_size=1))
    plain.build("first_stage", recipe.first_stage, None, "")
    losses = [plain.step(step, step) for step in range(8)]
    plain.build("second_stage", recipe.second_stage, plain.state(), "first_stage")
    losses += [plain.step(step, step - 8) for step in range(8, 16)]
    records = sorted(outcome.records.values(), key=lambda record: record["segment"]["end_step"])
    assert [step for record in records for step in record["steps"]] == losses

    # The best trial's recipe stands by itself: from the same storage it has nothing left to train.
    again = run(outcome.folder / "best")
    assert again.executed == executed
    assert again.trials[0]["key"] == trial["key"]

    assert export.main([str(outcome.folder), str(tmp_path / "unet.pt")]) == 0
    content = torch.load(tmp_path / "unet.pt", weights_only=True)
    assert (content["global_step"], list(content["state_dict"])) == (16, ["weight"])


@pytest.mark.soak
def test_a_search_of_convergence_shares_stage_one(cluster: None, make_search: Any, run_search: Any) -> None:
    space = make_search(
        overrides={
            "transition.at_step": None,
            "transition.plateau": {"metric": "val/recon"},
            "transition.max_step": 40,
        },
        param_space={
            "transition.plateau.patience_steps": {"grid": [4, 16]},
            "transition.plateau.min_delta": {"grid": [0.001, 0.5]},
        },
    )
    outcome = run_search(space)
    assert outcome.exit_status == 0 and len(outcome.trials) == 4
    transitions = sorted(int(trial["transition_step"]) for trial in outcome.trials)
    assert transitions[0] < transitions[-1]  # patience counts
    stage_one = [r for r in outcome.records.values() if r["segment"]["stage"] == "first_stage"]
    assert len(stage_one) == transitions[-1] // 4
    assert outcome.executed == sorted(outcome.records)


@pytest.mark.soak
def test_a_threshold_of_zero_is_a_trial_without_stage_one(cluster: None, make_search: Any, run_search: Any) -> None:
    space = make_search(overrides={"transition.min_step": 0}, param_space={"transition.at_step": {"grid": [0, 4]}})
    outcome = run_search(space)
    assert [trial["transition_step"] for trial in outcome.trials] == ["0", "4"]
    assert [trial["global_step"] for trial in outcome.trials] == ["8", "12"]
    assert len(outcome.executed) == 2 + 3


def test_what_the_cluster_can_never_hold_is_refused(make_search: Any, tmp_path: Path) -> None:
    """Before clips are drawn or anything is written."""
    command = [sys.executable, "-m", "latentsync_ray.tune", str(make_search(data_folder=tmp_path / "drawn"))]
    command += [f"storage={tmp_path / 'results'}", "workers.num_cpus=4000"]
    started = time.monotonic()
    done = subprocess.run(command, env={**os.environ, "RAY_ADDRESS": "local"}, capture_output=True, text=True)
    print(f"refused after {time.monotonic() - started:.1f} s")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(
        "error: workers: a group of 1 needs 4000 CPU on one node, the cluster has 1 node with "
    )
    assert not (tmp_path / "drawn").exists() and not (tmp_path / "results").exists()


@pytest.mark.soak
def test_the_same_command_at_once_is_refused(make_search: Any, run_search: Any, tmp_path: Path) -> None:
    """The second one trains nothing and says who runs the search; the first one does not notice."""
    slow = {"step_seconds": 3}
    space = make_search(stage={"first_stage": slow, "second_stage": slow}, workers={"max_groups": 1})
    command = [sys.executable, "-m", "latentsync_ray.tune", str(space), f"storage={tmp_path / 'results'}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    with subprocess.Popen(command, env=environment, **pipes) as first:
        end = time.monotonic() + 240
        while not list(tmp_path.glob("results/searches/*/runner-*.json")) and time.monotonic() < end:
            time.sleep(0.1)
        second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert first.poll() is None, "the first command had ended before the second was refused"
        output, errors = first.communicate(timeout=600)
    assert second.returncode == 2 and second.stderr.count("\n") == 1, second.stderr
    assert f"process {first.pid} on {socket.gethostname()} runs this search since " in second.stderr
    assert first.returncode == 0, errors
    outcome = Outcome(results_folder(output), tmp_path / "results", 0)
    assert outcome.executed == sorted(outcome.records) and len(outcome.executed) == 4
    assert not list(outcome.folder.glob("runner-*.json"))
