"""A training in a file of its own, through the Python API: searched with sharing, killed, gone on with, read.

Nothing of `latentsync_ray.latentsync` is imported, in no process of the search.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import latentsync_ray
from latentsync_ray.config.errors import UserError

pytestmark = pytest.mark.slow
OWN = Path(__file__).parent / "own"
SCRIPT = """
import sys
import latentsync_ray
search = latentsync_ray.load_search({space!r}, {values!r}, storage={storage!r})
results = search.run()
assert not any(name.startswith("latentsync_ray.latentsync") for name in sys.modules)
print("FOLDER", results.folder, results.exit_status)
"""


def start(storage: Path, **values: float) -> subprocess.Popen[str]:
    """A script of a user's that runs the search, in a process group of its own."""
    named = {name.replace("__", "."): value for name, value in values.items()}
    script = SCRIPT.format(space=str(OWN / "search.yaml"), values=named, storage=str(storage))
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    return subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def expected(at_step: int, lr: float, slope: float = 3.0) -> float:
    """The error at the end of a trial, worked out here."""
    value = torch.zeros(1)
    for step in range(at_step + 8):
        noise = torch.randn((), generator=torch.Generator().manual_seed(step))
        value = value - (0.3 if step < at_step else lr) * (value - slope + 0.1 * noise)
    return float((value - slope).abs())


def test_a_training_of_ones_own_is_searched_killed_and_gone_on_with(tmp_path: Path) -> None:
    storage = tmp_path / "results"
    first = start(storage, line__step_seconds=0.3)
    end = time.monotonic() + 600
    while time.monotonic() < end and len(list(storage.glob("segments/*/record.json"))) < 2:
        time.sleep(0.1)
    first.kill()
    first.wait()
    before = {file.parent.name for file in storage.glob("segments/*/record.json")}
    assert before, "nothing was trained before the kill"

    second = start(storage)  # the time of a step is not in the key, so it is the same search
    output, _ = second.communicate(timeout=300)
    assert second.returncode == 0, output
    folder, status = output.split("FOLDER ")[-1].split()
    assert "warning: the line is drawn" in output

    results = latentsync_ray.open_results(folder)
    assert len(results) == 9 and status == "0"
    table = results.get_dataframe()
    for row in table.to_dict("records"):
        if row["status"] == "finished":
            assert row["val/error"] == expected(row["transition.at_step"], row["second_stage.lr"])
    assert set(table[table["second_stage.lr"] == 5.0]["status"]) == {"diverged"}
    best = results.get_best_result()
    finished = table[table.status == "finished"]
    assert best.metrics["val/objective"] == finished["val/objective"].min() == best.metrics["val/error"]
    curves = results.curves()
    assert set(curves[curves.trial == best.number].stage) == {"first_stage", "second_stage"}

    # What trials share was trained once, and what was there before the kill was not trained again.
    summary = json.loads((Path(folder) / "summary.json").read_text())
    assert summary["steps_distinct"] < summary["steps_without_sharing"] / 2
    assert summary["inputs"] == {"slope": 3.0}
    executed = [file.parts[-3] for file in storage.glob("segments/*/executions/*.json")]
    assert all(executed.count(key) == 1 for key in before)


def test_mistakes_in_a_training_of_ones_own_are_one_line(tmp_path: Path) -> None:
    for values, line in (
        ({"line.slop": 1}, "line.slop"),
        ({"line.step_seconds": -1}, "step_seconds: must not be negative"),
        ({"metric": "val/loss"}, "choose one of val/objective, val/error, val/slope"),
        ({"param_space": {"line.slope": {"grid": [1.0]}}}, "must stay the same for all trials"),
    ):
        with pytest.raises(UserError, match=line):
            latentsync_ray.load_search(OWN / "search.yaml", values)
    with pytest.raises(UserError, match="has no results yet"):
        latentsync_ray.open_results(tmp_path / "searches" / "own-1234")
