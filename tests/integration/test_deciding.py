"""Every trial scheduler and search algorithm on the engine: it ends, is exact, and decides the same again."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from trivial import SecondStage, Stage, TrivialRecipe, TrivialTraining

from latentsync_ray.config.loading import stage_config
from latentsync_ray.config.transition import TransitionConfig
from latentsync_ray.core.training import TrainingSetup
from latentsync_ray.store import weights_sha256

pytestmark = pytest.mark.slow

RATES = {"second_stage.optimizer.lr": {"loguniform": [0.001, 0.1]}}
HALVING = {"grace_period": 4, "reduction_factor": 2}
POPULATION = {"perturbation_interval": 4, "quantile_fraction": 0.5}
SEARCHES: dict[str, dict[str, Any]] = {
    "hyperband": {"trial_scheduler": {"name": "hyperband", "reduction_factor": 2}, "num_samples": 12},
    "promotion": {"trial_scheduler": {"name": "asha", "promote": True, **HALVING}, "num_samples": 8},
    "optuna": {"trial_scheduler": {"name": "asha", **HALVING}, "search_alg": "optuna", "num_samples": 8},
    "promotion of optuna's": {
        "trial_scheduler": {"name": "asha", "promote": True, **HALVING},
        "search_alg": "optuna",
        "num_samples": 6,
    },
    "pbt": {
        "trial_scheduler": {"name": "pbt", **POPULATION},
        "num_samples": 8,
        "param_space": RATES | {"transition.at_step": {"choice": [4, 8, 12]}},
    },
    "pb2": {
        "trial_scheduler": {"name": "pb2", **POPULATION},
        "num_samples": 4,
        "param_space": {"second_stage.optimizer.lr": {"uniform": [0.001, 0.1]}},
    },
}
NEEDS = {"optuna": "optuna", "promotion of optuna's": "optuna", "pb2": "sklearn"}


def lineage(outcome: Any, key: str) -> list[dict[str, Any]]:
    """The segments from the first one to this, from nothing but the records."""
    segments = []
    while key in outcome.records:
        segments.append(outcome.records[key]["segment"])
        key = segments[-1]["parent"]
    return segments[::-1]


def weights_of(segments: list[dict[str, Any]]) -> str:
    """Hash of the weights that a lineage leads to, trained in one go without engine, store or workers."""
    recipe = TrivialRecipe(
        transition=TransitionConfig(max_step=16), first_stage=Stage(), second_stage=SecondStage(num_steps=20)
    )
    setup = TrainingSetup(recipe, 0, torch.device("cpu"))
    training, built, stage = TrivialTraining(setup), None, ""
    for segment in segments:
        if built != (segment["stage"], segment["config"]):
            state = training.state() if built else None
            config = stage_config(recipe, segment["stage"], segment["config"])
            training.build(segment["stage"], config, state, stage)
            built, stage = (segment["stage"], segment["config"]), segment["stage"]
        for step in range(segment["start_step"], segment["end_step"]):
            training.step(step, step - segment["stage_start_step"])
    return weights_sha256(training.state())


@pytest.mark.parametrize(
    "name",
    [name if name == "pbt" else pytest.param(name, marks=pytest.mark.soak) for name in SEARCHES],
)
def test_it_ends_is_exact_and_decides_the_same_again(
    name: str, cluster: None, make_search: Any, run_search: Any
) -> None:
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed")
    space = make_search(**{"param_space": RATES, **SEARCHES[name]}, name=name.split()[0])
    outcome = run_search(space, "second_stage.num_steps=16")
    trials = outcome.trials
    assert outcome.exit_status == 0 and len(trials) == SEARCHES[name]["num_samples"]
    assert {trial["status"] for trial in trials} <= {"finished", "stopped"}
    assert any(trial["status"] == "finished" for trial in trials)
    assert any(trial["status"] == "stopped" for trial in trials) == (name not in ("pbt", "pb2"))
    executed = outcome.executed
    assert len(executed) == len(set(executed))  # nothing was trained twice
    assert outcome.summary["steps_trained"] == 4 * len(executed) == outcome.summary["steps_distinct"]
    for trial in trials:
        segments = lineage(outcome, trial["key"])
        assert segments[0]["start_step"] == 0 and segments[-1]["end_step"] == int(trial["global_step"])
        assert outcome.records[trial["key"]]["weights_sha256"] == weights_of(segments)

    (outcome.folder / "trials.json").unlink()  # as if the driver had been killed at the end
    again = run_search(space, "second_stage.num_steps=16")
    assert again.executed == executed
    assert again.trials == trials
    assert again.summary["exploits"] == outcome.summary["exploits"]


@pytest.mark.soak
def test_a_clone_begins_with_its_sources_weights(cluster: None, make_search: Any, run_search: Any) -> None:
    space = make_search(**SEARCHES["pbt"], workers={"max_groups": 2})
    outcome = run_search(space, "second_stage.num_steps=24")
    assert [trial["status"] for trial in outcome.trials] == ["finished"] * 8  # a population of 8 on 2 groups
    exploits, records = outcome.summary["exploits"], outcome.records
    assert exploits
    for trial in outcome.trials:  # a clone has left stage one where its source did
        assert trial["transition.at_step"] == trial["transition_step"]
    for exploit in exploits:
        rate = exploit["parameters"]["second_stage.optimizer.lr"]
        starts = [
            record["start_weights_sha256"]
            for record in records.values()
            if record["segment"]["parent"] == exploit["key"]
            and record["segment"]["config"]["optimizer"]["lr"] == rate
        ]
        assert starts == [records[exploit["key"]]["weights_sha256"]]


@pytest.mark.soak
def test_half_of_a_journal_is_followed_to_its_end(cluster: None, make_search: Any, run_search: Any) -> None:
    """As after a driver that was killed: what the journal holds is kept to, what it lacks is decided anew."""
    space = make_search(**SEARCHES["pbt"])
    outcome = run_search(space, "second_stage.num_steps=16")
    (outcome.folder / "trials.json").unlink()
    entries = sorted((outcome.folder / "decisions").iterdir(), key=lambda file: file.stat().st_mtime_ns)
    kept = {file: file.read_bytes() for file in entries[: len(entries) // 2]}
    for file in entries[len(kept) :]:
        file.unlink()
    again = run_search(space, "second_stage.num_steps=16")
    assert all(Path(file).read_bytes() == content for file, content in kept.items())
    assert [trial["status"] for trial in again.trials] == ["finished"] * 8
    for trial in again.trials:
        assert again.records[trial["key"]]["weights_sha256"] == weights_of(lineage(again, trial["key"]))
