"""A search reported to MLflow's file store and to W&B offline, both at once."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

pytestmark = pytest.mark.slow
AT, LR = "transition.at_step", "second_stage.optimizer.lr"
OBJECTIVE = "val/objective"


def mlflow_runs(store: Path) -> dict[str, tuple[dict[str, str], list[int]]]:
    """Name of a run -> its parameters, and the steps of its points."""
    from mlflow import MlflowClient

    client = MlflowClient(str(store))
    experiment = client.get_experiment_by_name("space")
    runs = client.search_runs([experiment.experiment_id])
    assert all(run.info.status == "FINISHED" for run in runs)
    steps = {run: [point.step for point in client.get_metric_history(run.info.run_id, OBJECTIVE)] for run in runs}
    made = {run.info.run_name: (run.data.params, sorted(steps[run])) for run in runs}
    assert len(made) == len(runs)  # no name is there twice
    return made


def log_entries(content: bytes) -> Iterator[bytes]:
    """Entries of a log in LevelDB's format, behind W&B's 7 bytes: blocks of parts with checksum, length, kind."""
    place, entry = 7, b""
    while place + 7 <= len(content):
        left = 2**15 - place % 2**15
        _, length, kind = struct.unpack_from("<IHB", content, place) if left >= 7 else (0, 0, 0)
        if kind == 0:  # the rest of a block is filled with zeros
            place += left
            continue
        entry += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield entry
            entry = b""


def wandb_runs(folder: Path) -> dict[str, tuple[dict[str, str], list[int]]]:
    """The same from the files that `wandb sync` would send."""
    from wandb.proto.wandb_internal_pb2 import Record

    made: dict[str, tuple[dict[str, str], list[int]]] = {}
    for file in folder.glob("wandb/offline-run-*/*.wandb"):
        name, config, steps = "", dict[str, str](), list[int]()
        for data in log_entries(file.read_bytes()):
            record = Record.FromString(data)
            if record.HasField("run"):
                name = record.run.display_name or name
                config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            if record.HasField("history"):
                items = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
                steps += [int(items["_step"])] if OBJECTIVE in items else []
        assert name not in made
        made[name] = ({key: str(value) for key, value in config.items() if not key.startswith("_")}, steps)
    return made


def test_runs_are_reported_once(
    cluster: None, make_search: Any, run_search: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "wandb"))
    space = make_search(
        overrides={"length": {"steps": 24}, "second_stage.num_steps": None},
        param_space={AT: {"grid": [8, 16]}, LR: {"grid": [0.02]}},
        trackers={"mlflow": {"tracking_uri": str(tmp_path / "mlflow")}, "wandb": {"mode": "offline"}},
    )
    expected = {"trunk": [4, 8, 12, 16], "at8_lr0.02": [12, 16, 20, 24], "at16_lr0.02": [20, 24]}
    for more in ([], ["baselines=true"]):
        assert run_search(space, *more).exit_status == 0
        if more:  # everything is gone through again, and reported again
            expected["trunk"] = list(range(4, 25, 4))
            expected |= {"never": [24], "first": [12, 16, 20, 24], "shipped": [12, 16, 20, 24]}
        for runs in (mlflow_runs(tmp_path / "mlflow"), wandb_runs(tmp_path / "wandb")):
            assert {name: steps for name, (_, steps) in runs.items()} == expected
            values = runs["at16_lr0.02"][0]
            assert {AT: "16", LR: "0.02", "role": "searched"}.items() <= values.items()
            assert not more or runs["never"][0]["role"] == "never leaving stage one"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("trackers.mlflow={tracking_uri: 'http://127.0.0.1:9'}", "trackers.mlflow: cannot be used (API request to"),
        ("trackers.wandb={mode: online}", "trackers.wandb: cannot be used (No WandB API key found."),
        ("trackers.wandb={project: ''}", "trackers.wandb.project: must not be empty"),
        ("trackers.mlflow={experiment: ''}", "trackers.mlflow.experiment: must not be empty"),
        ("trackers.neptune={}", "argument trackers.neptune: Key 'neptune' not in"),
    ],
)
def test_a_tracker_that_cannot_be_used_is_one_line(asked: str, told: str, make_search: Any, tmp_path: Path) -> None:
    space = make_search(param_space={AT: {"grid": [8]}})
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_API_KEY"}
    command = [sys.executable, "-m", "latentsync_ray.tune", str(space), f"storage={tmp_path}", asked]
    done = subprocess.run(
        command, cwd=ROOT, env=environment | {"NETRC": str(tmp_path / "netrc")}, capture_output=True, text=True
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(lines) == 1 and told in lines[0], done.stderr
    assert "Traceback" not in done.stderr
