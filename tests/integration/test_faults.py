"""Whatever breaks, nobody is left waiting: it is tried again, or it ends in one clear error."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import OneOrder, Outcome, ray_processes, results_folder, when, write_search

from latentsync_ray.config.search import WorkersConfig
from latentsync_ray.engine.groups import empty_places, remove_what_is_left, run_group
from latentsync_ray.engine.messages import GroupSetup, WorkerOrder
from latentsync_ray.search.trial import Trial
from latentsync_ray.store import Store

pytestmark = pytest.mark.slow


NOTES = "segments/*/executions/*.json"
"""What workers leave in the store when they begin a segment."""


def print_retry(outcome: Any, fault_time: float) -> None:
    """Says how long after a fault a worker began to train again (pytest -s shows it)."""
    notes = sorted(file.stat().st_mtime for file in outcome.store.glob(NOTES))
    print(f"tried again {next(note for note in notes if note > fault_time) - fault_time:.1f} s after the fault")


@pytest.fixture(scope="module")
def undisturbed(cluster: None, data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """Results of a search with one worker a trial, in which nothing goes wrong."""
    from latentsync_ray.tune import main

    folder = tmp_path_factory.mktemp("undisturbed")
    assert main([str(write_search(folder, data_folder)), f"storage={folder / 'results'}"]) == 0
    (table,) = folder.glob("results/searches/*/trials.csv")
    return Outcome(table.parent, folder / "results", 0).results


def test_an_error_in_a_step_reaches_only_those_who_need_it(cluster: None, make_search: Any, run_search: Any) -> None:
    space = make_search(
        stage={"second_stage": {"fail_at_step": 10}}, param_space={"transition.at_step": {"grid": [8, 12]}}
    )
    outcome = run_search(space)
    assert outcome.exit_status == 1
    assert [trial["status"] for trial in outcome.trials] == ["failed", "finished"]
    assert outcome.summary["trials_by_status"] == {
        "finished": 1,
        "stopped": 0,
        "diverged": 0,
        "failed": 1,
        "unfinished": 0,
    }


@pytest.mark.parametrize("num_workers", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_a_nan_on_one_rank_ends_the_trial_in_one_line(
    num_workers: int, cluster: None, make_search: Any, run_search: Any
) -> None:
    space = make_search(
        stage={"second_stage": {"nan_at_step": 10}},
        param_space={"transition.at_step": {"grid": [8, 12]}},
        workers={"max_groups": 1},
    )
    settings = [f"first_stage.num_workers={num_workers}", f"second_stage.num_workers={num_workers}"]
    outcome = run_search(space, *settings)
    assert outcome.exit_status == 0
    assert [trial["status"] for trial in outcome.trials] == ["diverged", "finished"]
    assert outcome.trials[0]["global_step"] == "8"  # its last checkpoint, from which other settings may start
    trial = json.loads((outcome.folder / "trials.json").read_text())["trials"][0]
    assert trial["error"] == "second_stage from step 8 to 12: step 10: the recon loss is nan"


@pytest.mark.soak
def test_a_diverging_trial_is_stopped_at_its_boundary(cluster: None, make_search: Any, run_search: Any) -> None:
    space = make_search(stage={"second_stage": {"grow": 1000}})
    outcome = run_search(space)
    assert outcome.exit_status == 1  # there is no other trial
    assert [(trial["status"], trial["global_step"]) for trial in outcome.trials] == [("diverged", "12")]
    longer = run_search(space, "divergence_factor=null")
    assert [(trial["status"], trial["global_step"]) for trial in longer.trials] == [("finished", "16")]
    assert longer.summary["steps_trained"] == 4  # what it had was kept


@pytest.mark.soak
def test_an_error_that_does_not_come_again_is_retried(
    cluster: None, undisturbed: Any, make_search: Any, run_search: Any, tmp_path: Path
) -> None:
    fault = {"fail_once": {"step": 5, "file": str(tmp_path / "failed")}}
    outcome = run_search(make_search(stage={"first_stage": fault}))
    assert (tmp_path / "failed").exists() and outcome.exit_status == 0
    assert len(outcome.executed) == len(set(outcome.executed)) + 1
    assert outcome.results == undisturbed


@pytest.mark.parametrize("num_workers", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_a_worker_killed_in_mid_segment(
    num_workers: int, cluster: None, make_search: Any, run_search: Any, tmp_path: Path
) -> None:
    fault = {"kill_times": {"step": 5, "file": str(tmp_path / "killed")}}
    space = make_search(stage={"first_stage": fault}, workers={"max_groups": 1})
    settings = [f"first_stage.num_workers={num_workers}", f"second_stage.num_workers={num_workers}"]
    outcome = run_search(space, *settings)
    assert (tmp_path / "killed").exists() and outcome.exit_status == 0
    assert len(outcome.executed) <= len(set(outcome.executed)) + 1
    assert any("first_stage to step 8" in notice for notice in outcome.summary["notices"])
    print_retry(outcome, (tmp_path / "killed").stat().st_mtime)
    clean = run_search(make_search(), *settings, store="undisturbed")
    assert [t["val/recon"] for t in outcome.trials] == [t["val/recon"] for t in clean.trials]


@pytest.mark.soak
def test_a_killed_controller(
    cluster: None, undisturbed: Any, make_search: Any, run_search: Any, tmp_path: Path
) -> None:
    """The process behind `fit()` is killed: the engine starts another group."""
    slow = {"first_stage": {"step_seconds": 0.5}}

    def kill() -> None:
        for process in ray_processes("ray::TrainController"):
            process.send_signal(signal.SIGKILL)

    killed_at = []
    begun = tmp_path / "results"
    thread = when(lambda: any(begun.glob(NOTES)), lambda: (kill(), killed_at.append(time.time())))
    outcome = run_search(make_search(stage=slow, workers={"max_groups": 1}))
    thread.join()
    assert outcome.exit_status == 0
    print_retry(outcome, killed_at[0])
    assert any("Ray Train run ended" in notice for notice in outcome.summary["notices"])
    assert outcome.results == undisturbed


class KillsTheController(OneOrder):
    """It ends the group's controller before it hands the order out."""

    def next_order(self, group: str, number: int) -> WorkerOrder | None:
        raylet = psutil.Process().parent()
        assert raylet is not None
        (controller,) = (p for p in raylet.children() if " ".join(p.cmdline()).startswith("ray::TrainController"))
        controller.kill()
        return super().next_order(group, number)


class IsKilled(OneOrder):
    """It is killed once the order is out, as the worker is about to begin; the one that Ray starts anew has none."""

    def __init__(self, folder: Path):
        self._killed = folder / "killed"

    def next_order(self, group: str, number: int) -> WorkerOrder | None:
        return None if self._killed.exists() else super().next_order(group, number)

    def order_stands(self, group: str, number: int) -> bool:
        if not self._killed.exists():
            self._killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return False


@pytest.mark.soak
def test_a_group_without_its_controller_begins_nothing_more(cluster: None, tmp_path: Path) -> None:
    import ray

    engine = ray.remote(KillsTheController).options(name="kills", num_cpus=0).remote()
    setup = GroupSetup(
        "kills", WorkersConfig(), "trivial:TrivialTraining", str(tmp_path), 300.0, str(tmp_path), False
    )
    error = run_group("group-1", 1, setup)
    ray.kill(engine)
    remove_what_is_left(WorkersConfig())
    assert error is not None and error.startswith("ActorDiedError")
    assert Store(str(tmp_path)).executions() == []


def test_a_group_without_its_engine_begins_nothing_more(cluster: None, tmp_path: Path) -> None:
    import ray

    limits = {"max_restarts": -1, "max_task_retries": -1}
    engine = ray.remote(IsKilled).options(name="killed", num_cpus=0, **limits).remote(tmp_path)
    setup = GroupSetup(
        "killed", WorkersConfig(), "trivial:TrivialTraining", str(tmp_path), 300.0, str(tmp_path), False
    )
    error = run_group("group-1", 1, setup)
    ray.kill(engine)
    assert error is None
    assert (tmp_path / "killed").exists() and Store(str(tmp_path)).executions() == []


@pytest.mark.soak
def test_a_controller_killed_before_its_workers_are_up(
    cluster: None, undisturbed: Any, make_search: Any, run_search: Any
) -> None:
    """What it had reserved for them, which is all that there is, goes to the next group's."""
    workers = {"max_groups": 1, "num_cpus": 2}

    def kill() -> None:
        for process in ray_processes("ray::TrainController"):
            process.send_signal(signal.SIGKILL)

    thread = when(lambda: bool(empty_places(WorkersConfig(num_cpus=2))), kill)
    outcome = run_search(make_search(workers=workers))
    thread.join()
    assert outcome.exit_status == 0
    assert any("Ray Train run ended" in notice for notice in outcome.summary["notices"])
    assert outcome.results == undisturbed
    assert not empty_places(WorkersConfig(num_cpus=2))


def test_this_cluster_is_asked_whatever_the_environment_says(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """`local` names none of several clusters of a machine; nor does another cluster's address name this one."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert empty_places(WorkersConfig()) == set()
    assert "RAY_API_SERVER_ADDRESS" not in os.environ


@pytest.mark.soak
def test_a_killed_trial_process(cluster: None, undisturbed: Any, make_search: Any, run_search: Any) -> None:
    slow = {"first_stage": {"step_seconds": 0.5}}

    def kill() -> None:
        for process in ray_processes("ray::_Inner") + ray_processes("ray::Trial"):
            process.send_signal(signal.SIGKILL)

    thread = when(lambda: bool(ray_processes("ray::_Inner.train") + ray_processes("ray::Trial.train")), kill)
    outcome = run_search(make_search(stage=slow, workers={"max_groups": 1}))
    thread.join()
    assert outcome.exit_status == 0
    assert outcome.results == undisturbed


class DiesOnce(Trial):
    """A trial whose process is lost the first time that it is to take another trial's place."""

    mark: str

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Ends the process, unless one has ended so before."""
        with contextlib.suppress(FileExistsError):
            Path(self.mark).touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().reset_config(new_config)


@pytest.mark.soak
def test_a_trial_lost_as_it_takes_over_a_process(
    cluster: None, make_search: Any, run_search: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Tune tries no trial again that was not running yet; the search does."""
    space = make_search(param_space={"transition.at_step": {"grid": [4, 8, 12, 16]}}, max_concurrent_trials=2)
    monkeypatch.setattr(
        "latentsync_ray.search.run.Trial", type("Dying", (DiesOnce,), {"mark": str(tmp_path / "mark")})
    )
    outcome = run_search(space)
    assert (tmp_path / "mark").exists()
    assert outcome.exit_status == 0
    assert [trial["status"] for trial in outcome.trials] == ["finished"] * 4
    assert sorted(outcome.executed) == sorted(outcome.records)  # nothing was trained again


@pytest.mark.soak
def test_damaged_entries_are_trained_again(
    cluster: None, undisturbed: Any, make_search: Any, run_search: Any
) -> None:
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

    shutil.rmtree(outcome.folder)  # or the state where its trial has ended would be kept
    longer = run_search(space, "second_stage.num_steps=8")
    notices = longer.summary["notices"]
    assert sum("record.json" in notice for notice in notices) == 1
    assert sum("state.safetensors" in notice for notice in notices) == 1
    assert all("\n" not in notice and "trained again" in notice for notice in notices)
    assert longer.results == undisturbed

    # What `export` advises where a state that no trial goes on from is lost.
    end = longer.trials[0]["key"]
    shutil.rmtree(outcome.store / "segments" / end)
    mended = run_search(space, "second_stage.num_steps=8")
    assert mended.summary["steps_trained"] == 8  # with the segment before it, whose state had been dropped
    assert (outcome.store / "segments" / end / "state.safetensors").exists()
    assert mended.results == undisturbed


@pytest.mark.soak
def test_a_full_storage_ends_the_search_in_one_line_and_room_lets_it_go_on(
    make_search: Any, run_search: Any, tmp_path: Path
) -> None:
    """On a small file system of its own, which takes a mount namespace."""
    allowed = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True)
    if allowed.returncode != 0:
        pytest.skip("this system lets nobody mount a file system of his own")
    space, full = make_search(workers={"max_groups": 1}), tmp_path / "full"
    full.mkdir()
    tune = f"{sys.executable} -m latentsync_ray.tune {space} storage={full} second_stage.num_steps=40"
    script = f"""
        mount -t tmpfs -o size=120k none {full}
        {tune} > {tmp_path}/first.txt 2>&1; echo "exit status $?" >> {tmp_path}/first.txt
        find {full} -name '*.tmp' > {tmp_path}/left.txt
        mount -o remount,size=50m {full}
        {tune} && cp -r {full} {tmp_path}/results
    """
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    again = subprocess.run(["unshare", "-rm", "sh", "-c", script], env=environment, capture_output=True, text=True)
    first = (tmp_path / "first.txt").read_text()
    assert first.endswith("exit status 2\n"), first
    assert "No space left on device" in first and "Traceback" not in first
    assert (tmp_path / "left.txt").read_text() == ""
    assert again.returncode == 0, again.stderr
    summary = json.loads(next(tmp_path.glob("results/searches/*/summary.json")).read_text())
    assert 0 < summary["steps_trained"] < summary["steps_distinct"] == 48
    clean = run_search(space, "second_stage.num_steps=40", store="undisturbed")
    (table,) = tmp_path.glob("results/searches/*/trials.csv")
    with table.open() as stream:
        assert list(csv.DictReader(stream)) == clean.trials


@pytest.mark.soak
def test_a_clip_that_turns_unreadable_in_mid_run(make_search: Any, run_search: Any, tmp_path: Path) -> None:
    """Two workers train on it; one line names the file, and with the file mended the numbers are the same."""
    folder = tmp_path / "clips"
    settings = ["first_stage.num_workers=2", "second_stage.num_workers=2"]
    space = make_search(trivial=False, data_folder=folder, workers={"max_groups": 1})
    command = [sys.executable, "-m", "latentsync_ray.tune", str(space), *settings, f"storage={tmp_path / 'results'}"]

    def damage() -> None:
        clip = min(folder.glob("*/clips/*.safetensors"))
        shutil.copy(clip, tmp_path / "whole")
        with clip.open("r+b") as stream:
            stream.truncate(1000)

    thread = when(lambda: any(tmp_path.glob("results/segments/*/record.json")), damage, seconds=240)
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    thread.join()
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("trial 0 failed")]
    assert done.returncode == 1 and "the file is damaged; prepare the set again" in line
    assert "Traceback" not in done.stdout + done.stderr

    shutil.copy(tmp_path / "whole", min(folder.glob("*/clips/*.safetensors")))
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert again.returncode == 0, again.stderr
    folder = results_folder(again.stdout)
    with (folder / "trials.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    clean = run_search(space, *settings, store="undisturbed")
    assert rows == clean.trials
