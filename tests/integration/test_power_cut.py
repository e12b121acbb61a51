"""After a power cut the same command ends with the same records, and trains nothing again that was complete."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from disk import Disk
from helpers import Outcome, results_folder

from latentsync_ray.store import Store
from latentsync_ray.store.upkeep import damages

NUM_CUTS = 50
SAID = ("metrics", "steps", "weights_sha256", "segment")
"""What a record says of the result, the same in every run."""


def said(outcome: Outcome) -> dict[str, dict[str, Any]]:
    return {key: {name: record[name] for name in SAID} for key, record in outcome.records.items()}


def record_search(space: Path, folder: Path) -> Outcome:
    """Runs a search in processes of its own that record what they sync (syncs/sitecustomize.py)."""
    (folder / "log").mkdir(parents=True)
    (folder / "store").mkdir()
    here = Path(__file__).parent
    path = os.pathsep.join([str(here / "syncs"), str(here)])
    done = subprocess.run(
        [sys.executable, "-m", "latentsync_ray.tune", str(space), f"storage={folder / 'store'}"],
        env={**os.environ, "RAY_ADDRESS": "local", "RECORD_SYNCS": str(folder), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return Outcome(results_folder(done.stdout), folder / "store", 0)


def lost(disk: Disk, moment: int, scratch: Path) -> Iterator[str]:
    """What a power cut takes that it must not: parts of complete segments, and content from under its name."""
    for names_arrived in (False, True):
        disk.restore(moment, names_arrived, scratch)
        store = Store(str(scratch))
        yield from damages(store)
        yield from sorted(disk.published(moment).difference(store.keys()))
        shutil.rmtree(scratch)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(5400)
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
    whole = record_search(space, tmp_path / "recorded")
    assert len(whole.records) == 16 and whole.executed == sorted(whole.records)
    disk = Disk(tmp_path / "recorded")
    moments = range(len(disk.syncs))
    print(f"{len(moments)} syncs by {len({sync.pid for sync in disk.syncs})} processes")
    assert {moment: found for moment in moments if (found := list(lost(disk, moment, tmp_path / "scratch")))} == {}

    request.getfixturevalue("cluster")
    chance = random.Random(0)
    for number, moment in enumerate(chance.sample(moments, NUM_CUTS)):
        names_arrived, store = chance.random() < 0.5, tmp_path / f"cut-{number}"
        disk.restore(moment, names_arrived, store)
        complete, begun = disk.published(moment), Outcome(store, store, 0).executed
        outcome = run_search(space, "workers.max_groups=1", store=store.name)
        again = list(outcome.executed)
        for key in begun:
            again.remove(key)
        where = f"after sync {moment} of {len(moments)}{', all names arrived' if names_arrived else ''}"
        print(f"{where}: {len(complete)} segments complete, {len(begun)} begun, {len(again)} trained afterwards")
        assert outcome.exit_status == 0, where
        assert said(outcome) == said(whole), where
        assert outcome.trials == whole.trials, where
        assert not complete.intersection(again), where
        assert len(again) == len(set(again)), where
