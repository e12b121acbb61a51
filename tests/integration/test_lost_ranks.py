"""Ranks that are lost or do not move any more: others take over, and the trials end as if nothing had been."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from helpers import Outcome, ray_processes, when

pytestmark = [pytest.mark.slow, pytest.mark.soak]

THRESHOLDS = {"transition.at_step": {"grid": [8, 12]}}


def settings(num_workers: int) -> list[str]:
    return [f"{stage}.num_workers={num_workers}" for stage in ("first_stage", "second_stage")]


def assert_ended_well(outcome: Outcome, clean: Outcome, num_lost: int) -> None:
    """Every trial has the results of the undisturbed search, and only what was lost was begun again."""
    assert outcome.exit_status == 0
    assert {trial["status"] for trial in outcome.trials} == {"finished"}
    assert outcome.results == clean.results
    assert len(outcome.executed) <= len(set(outcome.executed)) + num_lost


def test_a_rank_killed_twice_in_one_segment_is_no_error_of_the_segment(
    cluster: None, make_search: Any, run_search: Any, tmp_path: Path
) -> None:
    """Rank 0 only sees that the connection was closed; of errors a segment may have one, of losses more."""
    fault = {"kill_times": {"step": 5, "file": str(tmp_path / "killed"), "times": 2}}
    search = {"workers": {"max_groups": 1}, "param_space": THRESHOLDS}
    outcome = run_search(make_search(stage={"first_stage": fault}, **search), *settings(2))
    assert sorted(path.name for path in tmp_path.glob("killed*")) == ["killed", "killed-1"]
    notices = [line for line in outcome.summary["notices"] if "first_stage to step 8" in line]
    assert notices and all("a worker was lost" in line for line in notices), outcome.summary["notices"]
    assert_ended_well(outcome, run_search(make_search(**search), *settings(2), store="undisturbed"), 2)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_step_that_never_returns_is_ended(
    num_workers: int, cluster: None, make_search: Any, run_search: Any, tmp_path: Path
) -> None:
    fault = {"hang_once": {"step": 5, "file": str(tmp_path / "hung")}}
    search = {"workers": {"max_groups": 1, "stall_minutes": 0.1}, "param_space": THRESHOLDS}
    outcome = run_search(make_search(stage={"first_stage": fault}, **search), *settings(num_workers))
    assert (tmp_path / "hung").exists()
    assert any("first_stage to step 8: has not moved" in line for line in outcome.summary["notices"])
    clean = run_search(make_search(**search), *settings(num_workers), store="undisturbed")
    assert_ended_well(outcome, clean, 1)


def test_a_process_that_was_stopped_for_too_long_is_ended(
    cluster: None, make_search: Any, run_search: Any, tmp_path: Path
) -> None:
    """A stop is no end: the process does not answer, and nobody is told that it is gone."""
    search = {"workers": {"max_groups": 1, "stall_minutes": 0.1}, "param_space": THRESHOLDS}
    stopped: list[int] = []

    def stop() -> None:
        process = max(ray_processes("ray::RayTrainWorker"), key=lambda process: process.pid)
        process.send_signal(signal.SIGSTOP)
        stopped.append(process.pid)

    thread = when(lambda: any(tmp_path.glob("results/segments/*/record.json")), stop, seconds=240)
    outcome = run_search(make_search(stage={"first_stage": {"step_seconds": 0.5}}, **search), *settings(2))
    thread.join()
    assert stopped and any("has not moved" in line for line in outcome.summary["notices"])
    clean = run_search(make_search(**search), *settings(2), store="undisturbed")
    assert_ended_well(outcome, clean, 1)
