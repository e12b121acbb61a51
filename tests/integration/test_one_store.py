"""Two searches on one store at the same time: each ends with what it gets alone, and no file is half-written."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import results_folder

from latentsync_ray.store import Store
from latentsync_ray.store.upkeep import damages, leftovers, whole_records

pytestmark = [pytest.mark.slow, pytest.mark.soak]

SPACES = {
    "left": {"transition.at_step": {"grid": [4, 8]}, "second_stage.optimizer.lr": {"grid": [0.01, 0.02]}},
    "right": {"transition.at_step": {"grid": [8, 12]}, "second_stage.optimizer.lr": {"grid": [0.02, 0.04]}},
}
"""The trunk to step 8 and the branch from there at 0.02 belong to both."""


def test_two_searches_share_a_store(make_search: Any, run_search: Any, tmp_path: Path) -> None:
    slow = {name: {"step_seconds": 0.3} for name in ("first_stage", "second_stage")}
    files = {}
    for name, space in SPACES.items():
        written = make_search(param_space=space, stage=slow, workers={"max_groups": 1}, name=name)
        files[name] = Path(shutil.copy(written, tmp_path / f"{name}.yaml"))
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    both = {
        name: subprocess.Popen(
            [sys.executable, "-m", "latentsync_ray.tune", str(file), f"storage={tmp_path / 'both'}"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name, file in files.items()
    }
    said = {name: process.communicate(timeout=1000)[0] for name, process in both.items()}
    assert [process.returncode for process in both.values()] == [0, 0], said
    store = Store(str(tmp_path / "both"))
    assert list(damages(store)) == []
    records = whole_records(store)
    assert leftovers(store, records) == {}
    executed = store.executions()
    assert set(executed) == set(records)

    begun = []
    for name, file in files.items():
        alone = run_search(file, store=f"{name} alone")
        folder = results_folder(said[name])
        with (folder / "trials.csv").open() as stream:
            assert list(csv.DictReader(stream)) == alone.trials
        assert json.loads((folder / "summary.json").read_text())["best"] == alone.summary["best"]
        for key, record in alone.records.items():
            parts = ("segment", "metrics", "steps", "weights_sha256")
            assert [records[key][part] for part in parts] == [record[part] for part in parts]
        begun += alone.executed
    print(f"{len(executed)} segments were begun for {len(records)}; alone the two begin {len(begun)}")
    assert set(begun) == set(records)
    assert len(executed) <= len(begun)
