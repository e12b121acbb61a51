"""Real video: prepared with a real autoencoder and a real Whisper encoder, then searched."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import ROOT, Outcome, ray_processes, when

pytestmark = [pytest.mark.slow, pytest.mark.soak]


@pytest.fixture(scope="module")
def real(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Prepares the real clips by the command; gives the overrides with which configs/real_tiny uses them."""
    folder = tmp_path_factory.mktemp("real") / "prepared"
    vae, whisper = shared / "real" / "autoencoder", shared / "real" / "whisper-tiny.en-encoder"
    command = [sys.executable, "-m", "latentsync_ray.preprocess", str(shared / "real" / "clips"), str(folder)]
    options = ["--vae", str(vae), "--audio-encoder", str(whisper), "--resolution", "256"]
    subprocess.run([*command, *options, "--validation", "demo1_00", "demo2_00"], check=True, timeout=1200)
    return [f"data.folder={folder}", f"components.vae={vae}"]


def test_a_search_on_real_clips(real: list[str], cluster: None, run_search: Any) -> None:
    outcome: Outcome = run_search(ROOT / "search_spaces" / "real_tiny.yaml", *real)
    print(outcome.summary)
    assert outcome.exit_status == 0 and len(outcome.trials) >= 6
    assert outcome.executed == sorted(outcome.records)
    records = sorted(outcome.records.values(), key=lambda record: record["segment"]["end_step"])
    recon = [r["metrics"]["val/recon"] for r in records if r["segment"]["stage"] == "first_stage"]
    print(f"validation recon: {recon}")
    assert recon[-1] < 0.7 * recon[0]
    assert min(float(trial["val/recon"]) for trial in outcome.trials) < 0.7 * recon[0]


def test_two_workers_a_trial_and_one_of_them_killed(
    real: list[str], cluster: None, run_search: Any, tmp_path: Path
) -> None:
    """Cut short, since a restart is what counts: two thresholds, one learning rate, few steps."""
    settings = [
        *real,
        "param_space={transition.at_step: {grid: [4, 8]}, second_stage.optimizer.lr: {grid: [1e-4, 1e-3, 1e-2]}}",
        "transition.max_step=8",
        "transition.min_step=4",
        "first_stage.report_every_steps=4",
        "second_stage.report_every_steps=1",
        "second_stage.num_steps=1",
        "first_stage.num_workers=2",
        "second_stage.num_workers=2",
        "second_stage.batch_size=2",
        "workers.max_groups=1",
        "trial_scheduler.name=fifo",
    ]
    space = ROOT / "search_spaces" / "real_tiny.yaml"
    clean = run_search(space, *settings, store="undisturbed")
    assert len(clean.trials) == 6

    # As soon as the second segment is begun, one of the two is killed.
    def begun() -> bool:
        return len(list((tmp_path / "disturbed").glob("segments/*/executions/*.json"))) >= 2

    def kill() -> None:
        workers: list[psutil.Process] = ray_processes("ray::RayTrainWorker")
        assert len(workers) == 2
        workers[-1].kill()

    thread = when(begun, kill, seconds=300)
    disturbed = run_search(space, *settings, store="disturbed")
    thread.join()
    assert any(" to step " in notice for notice in disturbed.summary["notices"])
    assert disturbed.trials == clean.trials
    shutil.rmtree(tmp_path / "disturbed")
