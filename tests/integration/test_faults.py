"""Whatever breaks, nobody is left waiting: it is tried again, or it ends in one clear error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import ray_processes, when

pytestmark = pytest.mark.slow


def undisturbed(outcome: Any, make_search: Any, run_search: Any, **search: Any) -> bool:
    """Whether the records say the same as those of a search in which nothing went wrong."""
    clean = run_search(make_search(**search), store="undisturbed")

    def results(found: Any) -> list[tuple[str, ...]]:
        return [(t["global_step"], t["val/recon"], t["status"]) for t in found.trials]

    return results(outcome) == results(clean)


def test_an_error_in_a_step_reaches_only_those_who_need_it(cluster: None, make_search: Any, run_search: Any) -> None:
    space = make_search(
        stage={"second_stage": {"fail_at_step": 10}}, param_space={"transition.at_step": {"grid": [8, 12]}}
    )
    outcome = run_search(space)
    assert outcome.exit_status == 1
    assert [trial["status"] for trial in outcome.trials] == ["failed", "finished"]
    assert outcome.summary["trials_by_status"] == {"finished": 1, "stopped": 0, "failed": 1}


def test_an_error_that_does_not_come_again_is_retried(
    cluster: None, make_search: Any, run_search: Any, tmp_path: Path
) -> None:
    fault = {"fail_once": {"step": 5, "file": str(tmp_path / "failed")}}
    outcome = run_search(make_search(stage={"first_stage": fault}))
    assert (tmp_path / "failed").exists() and outcome.exit_status == 0
    assert len(outcome.executed) == len(set(outcome.executed)) + 1
    assert undisturbed(outcome, make_search, run_search)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_worker_killed_in_mid_segment(
    num_workers: int, cluster: None, make_search: Any, run_search: Any, tmp_path: Path
) -> None:
    fault = {"kill_once": {"step": 5, "file": str(tmp_path / "killed")}}
    space = make_search(stage={"first_stage": fault}, workers={"max_groups": 1})
    settings = [f"first_stage.num_workers={num_workers}", f"second_stage.num_workers={num_workers}"]
    outcome = run_search(space, *settings)
    assert (tmp_path / "killed").exists() and outcome.exit_status == 0
    assert len(outcome.executed) <= len(set(outcome.executed)) + 1
    assert any("first_stage to step 8" in notice for notice in outcome.summary["notices"])
    notes = sorted(file.stat().st_mtime for file in outcome.store.glob("segments/*/executions/*.json"))
    fault_time = (tmp_path / "killed").stat().st_mtime
    print(f"tried again {next(note for note in notes if note > fault_time) - fault_time:.1f} s after the fault")
    clean = run_search(make_search(), *settings, store="undisturbed")
    assert [t["val/recon"] for t in outcome.trials] == [t["val/recon"] for t in clean.trials]


def test_a_killed_controller(cluster: None, make_search: Any, run_search: Any) -> None:
    """The process behind `fit()` is killed: the engine starts another group."""
    slow = {"first_stage": {"step_seconds": 0.5}}

    def kill() -> None:
        for process in ray_processes("ray::TrainController"):
            process.send_signal(signal.SIGKILL)

    thread = when(lambda: len(ray_processes("ray::RayTrainWorker")) > 0, lambda: (time.sleep(2), kill()))
    outcome = run_search(make_search(stage=slow, workers={"max_groups": 1}))
    thread.join()
    assert outcome.exit_status == 0
    assert any("Ray Train run ended" in notice for notice in outcome.summary["notices"])
    assert undisturbed(outcome, make_search, run_search)


def test_a_killed_trial_process(cluster: None, make_search: Any, run_search: Any) -> None:
    slow = {"first_stage": {"step_seconds": 0.5}}

    def kill() -> None:
        for process in ray_processes("ray::_Inner") + ray_processes("ray::Trial"):
            process.send_signal(signal.SIGKILL)

    thread = when(lambda: bool(ray_processes("ray::_Inner.train") + ray_processes("ray::Trial.train")), kill)
    outcome = run_search(make_search(stage=slow, workers={"max_groups": 1}))
    thread.join()
    assert outcome.exit_status == 0
    assert undisturbed(outcome, make_search, run_search)


def test_damaged_entries_are_trained_again(cluster: None, make_search: Any, run_search: Any) -> None:
    space = make_search()
    outcome = run_search(space, "second_stage.num_steps=4")
    records = outcome.records
    last = max(records, key=lambda key: records[key]["segment"]["end_step"])
    first_stage = [key for key in records if records[key]["segment"]["stage"] == "first_stage"]
    branch_from = max(first_stage, key=lambda key: records[key]["segment"]["end_step"])
    state = outcome.store / "segments" / last / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-3])
    record = outcome.store / "segments" / branch_from / "record.json"
    record.write_text(record.read_text().replace('"metrics"', '"metrix"'))

    longer = run_search(space, "second_stage.num_steps=8")
    notices = longer.summary["notices"]
    assert sum("record.json" in notice for notice in notices) == 1
    assert sum("state.safetensors" in notice for notice in notices) == 1
    assert all("\n" not in notice and "trained again" in notice for notice in notices)
    clean = run_search(make_search(), "second_stage.num_steps=8", store="undisturbed")
    assert [t["val/recon"] for t in longer.trials] == [t["val/recon"] for t in clean.trials]


def test_ctrl_c_keeps_what_was_trained(make_search: Any, tmp_path: Path) -> None:
    space = make_search(stage={"first_stage": {"step_seconds": 0.4}, "second_stage": {"step_seconds": 0.4}})
    command = [sys.executable, "-m", "latentsync_ray.tune", str(space), f"storage={tmp_path / 'results'}"]
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )

    def records() -> list[Path]:
        return list((tmp_path / "results").glob("segments/*/record.json"))

    deadline = time.monotonic() + 120
    while not records() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert records(), "nothing was trained in two minutes"
    children = psutil.Process(process.pid).children(recursive=True)
    started = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    output, errors = process.communicate(timeout=60)
    assert time.monotonic() - started < 10
    assert process.returncode == 130
    assert "Traceback" not in output + errors
    kept = records()
    assert kept
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive, [child.name() for child in alive]

    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0, again.stderr
    folder = Path(again.stdout.strip().splitlines()[-1].removeprefix("results: "))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps_trained"] == summary["steps_distinct"] - 4 * len(kept)
