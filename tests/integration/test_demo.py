"""The main job on the embedded default: it shares, it learns, and it is not done twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, Outcome, results_folder

from latentsync_ray.config.loading import load_recipe, stage_config
from latentsync_ray.latentsync.config import LatentSyncRecipe
from latentsync_ray.latentsync.data.clips import PreparedClips
from latentsync_ray.latentsync.inputs import ready_inputs
from latentsync_ray.latentsync.stage import Stages, StagesSetup
from latentsync_ray.store import Store

pytestmark = pytest.mark.slow
SPACE = "search_spaces/transition.yaml"


def tune(storage: Path) -> tuple[Outcome, float]:
    """Runs the main command as a user does. Returns what it left, and its seconds."""
    started = time.monotonic()
    command = [sys.executable, "-m", "latentsync_ray.tune", SPACE, f"storage={storage}"]
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = results_folder(done.stdout)
    return Outcome(folder, storage, 0), time.monotonic() - started


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The finished demo search."""
    outcome, seconds = tune(tmp_path_factory.mktemp("demo"))
    print(f"the demo search took {seconds:.0f} s: {json.dumps(outcome.summary, indent=1)}")
    return outcome


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> LatentSyncRecipe:
    return ready_inputs(load_recipe(ROOT / "configs" / "demo"), Store(str(tmp_path_factory.mktemp("notes")))).recipe


def lineage(outcome: Outcome, trial: dict[str, str]) -> list[dict[str, Any]]:
    """A trial's records, oldest first."""
    records, found, key = outcome.records, [], trial["key"]
    while key in records:
        found.insert(0, records[key])
        key = records[key]["segment"]["parent"]
    return found


def training(recipe: LatentSyncRecipe) -> Stages:
    clips = PreparedClips.open(recipe.data.folder)
    torch.set_num_threads(1)
    return Stages(
        StagesSetup(
            clips, recipe.components, recipe.validation, recipe.data.num_frames, recipe.seed, torch.device("cpu")
        )
    )


def test_it_shares(demo: Outcome) -> None:
    assert len(demo.trials) == 16
    assert demo.executed == sorted(demo.records)  # each segment once
    assert demo.summary["steps_trained"] == demo.summary["steps_distinct"]
    assert demo.summary["sharing_factor"] > 4
    assert demo.summary["inputs"]["syncnet_accuracy"] > 0.85


def test_stage_one_halves_the_validation_loss(demo: Outcome) -> None:
    longest = max(demo.trials, key=lambda trial: int(trial["transition_step"] or 0))
    first_stage = [
        r["metrics"]["val/recon"] for r in lineage(demo, longest) if r["segment"]["stage"] == "first_stage"
    ]
    assert first_stage[-1] <= first_stage[0] / 2


def test_stage_two_improves_sync_and_keeps_recon(demo: Outcome) -> None:
    records = lineage(demo, demo.summary["best"])
    before = [r["metrics"] for r in records if r["segment"]["stage"] == "first_stage"][-1]
    after = records[-1]["metrics"]
    print(f"before {before}\nafter {after}")
    assert after["val/sync"] < before["val/sync"]
    assert after["val/recon"] <= 1.05 * before["val/recon"]


def test_another_clips_sound_makes_sync_worse(demo: Outcome, recipe: LatentSyncRecipe) -> None:
    best = demo.records[demo.summary["best"]["key"]]
    trained = training(recipe)
    state = Store(str(demo.store)).read_state(best["key"], best["state"]["sha256"])
    config = stage_config(recipe, "second_stage", best["segment"]["config"])
    trained.build("second_stage", config, state, "second_stage")
    own = trained.validate()
    assert own["val/sync"] == best["metrics"]["val/sync"]  # a stored state gives its own numbers again

    samples = trained.validation.samples
    others = [
        next(s for s in samples[i:] + samples[:i] if s["name"] != samples[i]["name"]) for i in range(len(samples))
    ]
    trained.validation.samples = [
        {**sample, "audio_features": other["audio_features"]} for sample, other in zip(samples, others, strict=True)
    ]
    swapped = trained.validate()
    print(f"sync loss with its own sound {own['val/sync']:.3f}, with another clip's {swapped['val/sync']:.3f}")
    assert swapped["val/sync"] > 1.1 * own["val/sync"]


def test_the_same_command_again_trains_nothing(demo: Outcome) -> None:
    again, seconds = tune(demo.store)
    print(f"the second call took {seconds:.0f} s")
    assert again.folder == demo.folder
    assert again.summary["steps_trained"] == 0
    assert again.summary["best"] == demo.summary["best"]
    assert again.executed == sorted(demo.records)
