"""A search under kill -9 ends as if nothing had been: six kills here, `make chaos` for many."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from helpers import ROOT
from records import make_segment, make_trained

sys.path.insert(0, str(ROOT / "benchmarks"))

from chaos import Mode, Run, chaos, verdicts
from faults import KINDS, Fault

from latentsync_ray.store import Store

SEGMENTS = {name: make_segment(number) for number, name in enumerate("abc")}

pytestmark = [pytest.mark.slow, pytest.mark.soak]


def test_the_verdicts_see_what_is_wrong(tmp_path: Path) -> None:
    """Three segments, one of them lost, one different and half-written, one trained twice without and with a kill."""

    def run(name: str, values: dict[str, float]) -> Run:
        made = Run(tmp_path / name)
        store = Store(str(made.storage))
        for name, value in values.items():
            store.publish(make_trained(SEGMENTS[name], {"val/recon": value}), {"model.weight": torch.zeros(1)})
            store.log_execution(SEGMENTS[name].key, "group-1")
        store.write_bytes("searches/s/trials.csv", b"trial\n0\n")
        return made

    clean = run("clean", {"a": 1.0, "b": 1.0, "c": 1.0})
    assert not any(verdicts(run("same", {"a": 1.0, "b": 1.0, "c": 1.0}), clean).values())
    disturbed = run("disturbed", {"b": 2.0, "c": 1.0})
    (disturbed.storage / "segments" / SEGMENTS["b"].key / "state.safetensors").write_bytes(b"half")
    (disturbed.storage / "segments" / SEGMENTS["c"].key / ".tmpqx3Rb1").write_bytes(b"half")  # which is collected
    (disturbed.storage / "searches" / "s" / "runner-1.json").write_bytes(b"{}")  # which is not
    time.sleep(0.05)
    again = SEGMENTS["c"].key
    Store(str(disturbed.storage)).log_execution(again, "group-1")
    assert {claim for claim, what in verdicts(disturbed, clean).items() if what} == {
        "nothing is lost",
        "every record says the same",
        "every state is whole or dropped",
        "nothing is trained again without a kill",
        "every file that is left over is collected",
    }
    first = disturbed.executions()[again][0]
    assert not Fault("worker", 1, first - 1).ends_one_within(first, first + 1)
    disturbed.faults.append(Fault("worker", 1, first + 0.01, is_stop=True))
    assert verdicts(disturbed, clean)["nothing is trained again without a kill"]
    disturbed.faults.append(Fault("worker", 1, first + 0.01))
    disturbed.finished[again] = first + 0.005
    found = verdicts(disturbed, clean)
    assert not found["nothing is trained again without a kill"]
    assert found["nothing is trained again that was finished"] == again[:8]


def test_one_kill_of_each_kind(tmp_path: Path) -> None:
    disturbed, found = chaos(tmp_path, Mode(len(KINDS), 0, thresholds=(8, 16), num_rates=2))
    assert {fault.kind for fault in disturbed.faults} == set(KINDS)
    assert not any(found.values()), found


def test_a_kill_and_a_stop_of_each_kind_with_two_ranks_and_large_states(tmp_path: Path) -> None:
    mode = Mode(2 * len(KINDS), 0, thresholds=(8, 16), num_rates=2, num_ranks=2, state_mb=50, stops=True)
    disturbed, found = chaos(tmp_path, mode)
    assert {(fault.kind, fault.is_stop) for fault in disturbed.faults} == {
        (k, s) for k in KINDS for s in (False, True)
    }
    assert not any(found.values()), found


def test_a_killed_command_on_its_own_machine_goes_on(make_search: Any, run_search: Any, tmp_path: Path) -> None:
    """Its in-process cluster dies with it, and nothing of that stays."""
    space = make_search(stage={"first_stage": {"step_seconds": 0.5}, "second_stage": {"step_seconds": 0.5}})
    command = [sys.executable, "-m", "latentsync_ray.tune", str(space), f"storage={tmp_path / 'results'}"]
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 240
    while len(list(tmp_path.glob("results/segments/*/record.json"))) < 2 and time.monotonic() < end:
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    agents = ("ray::RuntimeEnvAgent", "ray::DashboardAgent")  # they look for their cluster for a minute
    assert all(" ".join(child.cmdline()).startswith(agents) for child in alive)
    _, alive = psutil.wait_procs(alive, timeout=90)
    assert not alive, [child.cmdline() for child in alive]

    kept = len(list(tmp_path.glob("results/segments/*/record.json")))
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0, again.stderr
    outcome = run_search(space)  # finished: it only reports
    assert outcome.summary["steps_trained"] == 0 and outcome.exit_status == 0
    assert kept >= 2 and len(outcome.executed) <= len(outcome.records) + 1
    clean = run_search(space, store="undisturbed")
    assert outcome.trials == clean.trials


ADAPTIVE = {
    "asha": {
        "trial_scheduler": {"name": "asha", "grace_period": 4, "reduction_factor": 2},
        "num_samples": 8,
        "max_concurrent_trials": 4,
    },
    "pbt": {
        "trial_scheduler": {"name": "pbt", "perturbation_interval": 4, "quantile_fraction": 0.5},
        "num_samples": 4,
    },
}


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_killed_command_keeps_to_its_journal(name: str, make_search: Any, run_search: Any, tmp_path: Path) -> None:
    """What was decided before the kill stays decided, and the whole search can be made again from its journal."""
    space = make_search(
        stage={"second_stage": {"step_seconds": 0.3}},
        param_space={"second_stage.optimizer.lr": {"loguniform": [0.001, 0.1]}},
        **ADAPTIVE[name],
    )
    arguments = [f"storage={tmp_path / 'results'}", "second_stage.num_steps=16"]
    command = [sys.executable, "-m", "latentsync_ray.tune", str(space), *arguments]
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 240
    while len(list(tmp_path.glob("results/searches/*/decisions/*.json"))) < 3 and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {file: file.read_bytes() for file in tmp_path.glob("results/searches/*/decisions/*.json")}
    trained = list(tmp_path.glob("results/segments/*/record.json"))
    assert len(kept) >= 3 and not list(tmp_path.glob("results/searches/*/summary.json"))
    print(f"killed after {len(kept)} decisions and {len(trained)} segments")

    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0, again.stderr
    assert {file: file.read_bytes() for file in kept} == kept
    outcome = run_search(space, arguments[1])  # finished: it only reports
    assert outcome.summary["steps_trained"] == 0
    assert len(outcome.executed) <= len(set(outcome.executed)) + 2  # one in flight on each of two groups

    (outcome.folder / "trials.json").unlink()  # as if killed again at the very end
    replayed = run_search(space, arguments[1])
    assert replayed.executed == outcome.executed
    assert replayed.trials == outcome.trials
