"""After a power cut the same command ends with the same records, and trains nothing again that was complete."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from disk import Disk
from helpers import Outcome, results_folder

NUM_CUTS = 50
SAID = ("metrics", "steps", "weights_sha256", "start_weights_sha256", "segment")
"""What a record says, whoever has trained it."""


def said(outcome: Outcome) -> dict[str, dict[str, Any]]:
    return {key: {name: record[name] for name in SAID} for key, record in outcome.records.items()}


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_power_cut_at_any_moment(
    make_search: Any, run_search: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Of one search all syncs are recorded; what was on the disk after some of them is what it goes on from."""
    space = make_search(
        param_space={
            "transition.at_step": {"grid": [8, 12, 16]},
            "second_stage.optimizer.lr": {"grid": [0.01, 0.02]},
        },
    )
    (tmp_path / "recorded" / "log").mkdir(parents=True)
    (tmp_path / "recorded" / "store").mkdir()
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-m", "latentsync_ray.tune", str(space), f"storage={tmp_path / 'recorded' / 'store'}"],
        env={
            **os.environ,
            "RAY_ADDRESS": "local",
            "RECORD_SYNCS": str(tmp_path / "recorded"),
            "PYTHONPATH": os.pathsep.join([str(here / "syncs"), str(here)]),
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    whole = Outcome(results_folder(done.stdout), tmp_path / "recorded" / "store", 0)
    assert len(whole.records) == 16 and whole.executed == sorted(whole.records)
    disk = Disk(tmp_path / "recorded")
    print(f"{len(disk.syncs)} syncs by {len({sync.pid for sync in disk.syncs})} processes")

    request.getfixturevalue("cluster")
    chance = random.Random(0)
    for number, moment in enumerate(sorted(chance.sample(range(len(disk.syncs)), NUM_CUTS))):
        names_arrived = chance.random() < 0.5
        store = tmp_path / f"cut-{number}"
        disk.restore(moment, names_arrived, store)
        complete = disk.published(moment)
        begun = Outcome(store, store, 0).executed
        outcome = run_search(space, "workers.max_groups=1", store=store.name)
        again = list(outcome.executed)
        for key in begun:
            again.remove(key)
        where = f"after sync {moment} of {len(disk.syncs)}{', all names arrived' if names_arrived else ''}"
        print(f"{where}: {len(complete)} segments complete, {len(begun)} begun, {len(again)} trained afterwards")
        assert outcome.exit_status == 0, where
        assert said(outcome) == said(whole), where
        assert outcome.trials == whole.trials, where
        assert not complete.intersection(again), where
        assert len(again) == len(set(again)), where
