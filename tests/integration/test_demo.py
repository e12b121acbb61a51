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


def objectives(demo: Outcome, recipe: LatentSyncRecipe, key: str) -> list[float]:
    """The objective of each pair of a window and a timestep, from the stored terms."""
    values = json.loads((demo.store / "segments" / key / "terms.json").read_text())["values"]
    weighted = [[weight * value for value in values[name]] for name, weight in recipe.objective().items()]
    return [sum(pair) for pair in zip(*weighted, strict=True)]


def test_it_shares_and_all_cost_the_same(demo: Outcome, recipe: LatentSyncRecipe) -> None:
    searched = [trial for trial in demo.trials if trial["role"] == "searched"]
    assert len(searched) == 12 and len(demo.trials) == 15
    assert demo.executed == sorted(demo.records)  # each segment once
    assert demo.summary["steps_trained"] == demo.summary["steps_distinct"]
    assert demo.summary["sharing_factor"] > 1.5
    assert demo.summary["inputs"]["syncnet_accuracy"] > 0.85
    assert recipe.length is not None
    assert {t["global_step"] for t in demo.trials if t["status"] == "finished"} == {str(recipe.length.steps)}


def test_the_answer_is_true(demo: Outcome, recipe: LatentSyncRecipe) -> None:
    """Its best trial and its differences, worked out again from `trials.csv` and the stored terms."""
    finished = [trial for trial in demo.trials if trial["status"] == "finished"]
    searched = [trial for trial in finished if trial["role"] == "searched"]
    best = min(searched, key=lambda trial: float(trial["val/objective"]))
    answer = demo.summary["answer"]
    assert answer["best"] == int(best["trial"])
    own = objectives(demo, recipe, best["key"])
    assert sum(own) / len(own) == pytest.approx(float(best["val/objective"]), rel=1e-6)
    for role, difference in answer["differences"].items():
        (baseline,) = (trial for trial in finished if trial["role"] == role)
        others = objectives(demo, recipe, baseline["key"])
        assert difference["relative"] == pytest.approx(sum(own) / sum(others) - 1, abs=1e-6)
        assert difference["low"] <= difference["relative"] <= difference["high"]
    never = answer["differences"]["never leaving stage one"]
    print(answer["sentences"])
    helps = [sentence for sentence in answer["sentences"] if "leaving stage one helps" in sentence]
    assert never["relative"] < 0 and bool(helps) == (never["high"] >= 0)  # said where these clips leave it open
    assert f"step {best['transition_step']}" in answer["sentences"][0]


def test_stage_one_falls_at_every_boundary(demo: Outcome) -> None:
    """The average of the weights is validated: at a constant rate the weights themselves jump."""
    (never,) = (trial for trial in demo.trials if trial["role"] == "never leaving stage one")
    curve = [record["metrics"]["val/recon"] for record in lineage(demo, never)]
    assert curve == sorted(curve, reverse=True) and curve[-1] <= curve[0] / 2


def test_stage_two_improves_sync(demo: Outcome) -> None:
    records = lineage(demo, demo.summary["best"])
    before = [r["metrics"] for r in records if r["segment"]["stage"] == "first_stage"][-1]
    after = records[-1]["metrics"]
    print(f"before {before}\nafter {after}")
    assert after["val/sync"] < before["val/sync"]


def test_another_clips_sound_makes_sync_worse(demo: Outcome, recipe: LatentSyncRecipe) -> None:
    """Of the trial that has learnt most of it; with low rates, 200 steps teach nothing of the sound."""
    finished = [trial for trial in demo.trials if trial["status"] == "finished"]
    best = demo.records[min(finished, key=lambda trial: float(trial["val/sync"]))["key"]]
    trained = training(recipe)
    state = Store(str(demo.store)).read_state(best["key"], best["state"]["sha256"])
    config = stage_config(recipe, "second_stage", best["segment"]["config"])
    trained.build("second_stage", config, state, "second_stage")
    own = trained.validate()
    assert own["val/sync"] == best["metrics"]["val/sync"]  # a stored state gives its own numbers again

    samples, swapped = trained.validation.samples, []
    assert len({sample["name"] for sample in samples}) == len(samples)
    for shift in (1, 3, 5):
        others = samples[shift:] + samples[:shift]
        trained.validation.samples = [
            {**sample, "audio_features": other["audio_features"]}
            for sample, other in zip(samples, others, strict=True)
        ]
        swapped.append(trained.validate()["val/sync"])
    print(f"sync loss with its own sound {own['val/sync']:.3f}, with other clips' {swapped}")
    assert sum(swapped) / len(swapped) > own["val/sync"]


def test_the_same_command_again_trains_nothing(demo: Outcome) -> None:
    again, seconds = tune(demo.store)
    print(f"the second call took {seconds:.0f} s")
    assert again.folder == demo.folder
    assert again.summary["steps_trained"] == 0
    assert again.summary["best"] == demo.summary["best"]
    assert again.executed == sorted(demo.records)
