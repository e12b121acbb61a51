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

sys.path.insert(0, str(ROOT / "benchmarks"))

from chaos import KINDS, Kill, Run, chaos, verdicts

from latentsync_ray.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.soak]


def test_the_verdicts_see_what_is_wrong(tmp_path: Path) -> None:
    """Three segments, one of them lost, one different and half-written, one trained twice without and with a kill."""

    def run(name: str, values: dict[str, float]) -> Run:
        made = Run(tmp_path / name)
        store = Store(str(made.storage))
        for key, value in values.items():
            record = {"segment": {}, "metrics": {"val/recon": value}, "steps": [], "weights_sha256": ""}
            store.publish(key, record, {"model.weight": torch.zeros(1)})
            store.log_execution(key, {})
        store.write_bytes("searches/s/trials.csv", b"trial\n0\n")
        return made

    clean = run("clean", {"a": 1.0, "b": 1.0, "c": 1.0})
    assert not any(verdicts(run("same", {"a": 1.0, "b": 1.0, "c": 1.0}), clean).values())
    disturbed = run("disturbed", {"b": 2.0, "c": 1.0})
    (disturbed.storage / "segments" / "b" / "state.safetensors").write_bytes(b"half")
    time.sleep(0.05)
    Store(str(disturbed.storage)).log_execution("c", {})
    assert {claim for claim, what in verdicts(disturbed, clean).items() if what} == {
        "nothing is lost",
        "every record says the same",
        "every state is whole or dropped",
        "nothing is trained again without a kill",
    }
    first = disturbed.executions()["c"][0]
    disturbed.kills.append(Kill("worker", 1, first + 0.01))
    disturbed.finished["c"] = first + 0.005
    found = verdicts(disturbed, clean)
    assert not found["nothing is trained again without a kill"]
    assert found["nothing is trained again that was finished"] == "c"


def test_one_kill_of_each_kind(tmp_path: Path) -> None:
    disturbed, found = chaos(tmp_path, len(KINDS), 0, step_seconds=0.5, thresholds=[8, 16], num_rates=2)
    assert {kill.kind for kill in disturbed.kills} == set(KINDS)
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
    assert not alive, [child.cmdline() for child in alive]

    kept = len(list(tmp_path.glob("results/segments/*/record.json")))
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0, again.stderr
    outcome = run_search(space)  # finished: it only reports
    assert outcome.summary["steps_trained"] == 0 and outcome.exit_status == 0
    assert kept >= 2 and len(outcome.executed) <= len(outcome.records) + 1
    clean = run_search(space, store="undisturbed")
    assert outcome.trials == clean.trials
