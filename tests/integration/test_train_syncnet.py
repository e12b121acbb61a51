"""A SyncNet's training by its command: it learns, it goes on where it was stopped, and processes share the work."""

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
import torch
from helpers import ROOT
from safetensors.torch import load_file

from latentsync_ray import train_syncnet
from latentsync_ray.latentsync.syncnet.model import StableSyncNet

pytestmark = pytest.mark.slow

CONFIG = str(ROOT / "configs" / "demo" / "syncnet.yaml")
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def tiny(data_folder: Path) -> list[str]:
    """Short clips, six steps, a checkpoint after every second."""
    drawn = {"num_speakers": 2, "clips_per_speaker": 1, "num_frames": 40, "num_validation_speakers": 1}
    return [
        f"data.folder={data_folder}",
        *(f"data.synthetic.{name}={value}" for name, value in drawn.items()),
        "batch_size=8",
        "num_steps=6",
        "validate_every_steps=2",
        "num_workers=1",
    ]


def figures(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "figures.json").read_text())


def test_what_it_leaves_behind_and_twice_the_same_command(
    cluster: None, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "syncnet"
    assert train_syncnet.main([CONFIG, *tiny, f"output={output}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"results: {output}"
    assert {file.name for file in output.iterdir()} == {"config.json", WEIGHTS, "figures.json"}
    network = StableSyncNet.from_pretrained(output)
    assert network.config.resolution is None
    assert figures(output)["metrics"]["step"] in (2, 4, 6)
    assert list((tmp_path / "syncnet.training").glob("tensorboard/*/events*"))

    before = (output / WEIGHTS).stat().st_mtime_ns
    assert train_syncnet.main([CONFIG, *tiny, f"output={output}"]) == 0
    assert "nothing to train" in capsys.readouterr().out
    assert (output / WEIGHTS).stat().st_mtime_ns == before


@pytest.mark.soak
def test_two_workers_get_what_one_gets(cluster: None, tiny: list[str], tmp_path: Path) -> None:
    """After four steps, of which two show decoded frames; the last is the only one with an accuracy."""
    steps = ["num_steps=4", "validate_every_steps=4", "optimizer.lr=1e-4"]
    for count in (1, 2):
        assert train_syncnet.main([CONFIG, *tiny, *steps, f"num_workers={count}", f"output={tmp_path}/{count}"]) == 0
    one, two = (load_file(tmp_path / count / WEIGHTS) for count in ("1", "2"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-5)
    cosine = "in_sync_mean_cosine"
    assert figures(tmp_path / "2")["metrics"][cosine] == pytest.approx(
        figures(tmp_path / "1")["metrics"][cosine], rel=1e-5
    )


@pytest.mark.soak
def test_ctrl_c_keeps_the_checkpoint_and_the_rest_is_bit_for_bit_the_same(
    cluster: None, tiny: list[str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "latentsync_ray.train_syncnet", CONFIG, *tiny, "num_steps=20"]
    command += [f"output={tmp_path / 'stopped'}"]
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )

    def checkpoints() -> list[Path]:
        """What Ray Train writes when it has taken in a checkpoint."""
        return list((tmp_path / "stopped.training").glob("*/checkpoint_manager_snapshot.json"))

    deadline = time.monotonic() + 120
    while not checkpoints() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert checkpoints(), process.communicate()
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, output + errors
    assert "Traceback" not in output + errors
    assert not (tmp_path / "stopped").exists()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive, [child.name() for child in alive]

    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0, again.stderr
    assert "step 20 of 20" in again.stderr and "step 2 of 20" not in again.stderr
    assert train_syncnet.main([CONFIG, *tiny, "num_steps=20", f"output={tmp_path / 'whole'}"]) == 0
    assert figures(tmp_path / "stopped") == figures(tmp_path / "whole")
    assert (tmp_path / "stopped" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()


@pytest.mark.soak
def test_a_place_that_is_taken(cluster: None, tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(Exception, match="holds something else than a trained SyncNet"):
        train_syncnet.main([CONFIG, *tiny, f"output={tmp_path / 'taken'}"])


@pytest.mark.soak
def test_the_demos_own_training_learns(cluster: None, tmp_path: Path) -> None:
    started = time.monotonic()
    assert train_syncnet.main([CONFIG, f"data.folder={tmp_path / 'data'}", f"output={tmp_path / 'syncnet'}"]) == 0
    print(f"{time.monotonic() - started:.0f} s: {figures(tmp_path / 'syncnet')}")
    assert figures(tmp_path / "syncnet")["balanced_accuracy"] > 0.85
