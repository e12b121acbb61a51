"""Steps are measured on a training that moves its own clock."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from latentsync_ray.config.recipe import Recipe, SecondStageConfig, StageConfig
from latentsync_ray.config.transition import TransitionConfig
from latentsync_ray.core.forecast import StageTimes
from latentsync_ray.core.segment import Segment
from latentsync_ray.core.training import Inputs, Training, TrainingSetup
from latentsync_ray.engine.probe import probe
from latentsync_ray.store import Store

SECONDS = {"first_stage": 1.0, "second_stage": 2.5}


class Clock:
    """Seconds that pass where something is done."""

    now = 0.0


class Timed(Training[Recipe]):
    """The first step of a stage takes 100 s more than the others, a validation 4 s, copying the state 0.5 s."""

    recipe_type = Recipe

    def __init__(self, setup: TrainingSetup[Recipe]):
        pass

    def build(
        self, stage: str, config: StageConfig, state: Mapping[str, torch.Tensor] | None, state_stage: str
    ) -> None:
        Clock.now += 1000.0
        self.stage = stage

    def step(self, global_step: int, stage_step: int) -> dict[str, float]:
        Clock.now += SECONDS[self.stage] + (100.0 if global_step == 0 else 0.0)
        return {"loss": 0.0}

    def validate(self) -> dict[str, float]:
        Clock.now += 4.0
        return {}

    def state(self) -> dict[str, torch.Tensor]:
        Clock.now += 0.5
        return {"model.w": torch.zeros(10), "optimizer.step": torch.zeros(2, dtype=torch.int64)}


@pytest.fixture(autouse=True)
def as_before() -> object:
    threads = torch.get_num_threads()
    yield None
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


def test_steps_validation_and_state_are_measured(tmp_path: Path) -> None:
    stages = {"first_stage": StageConfig(), "second_stage": SecondStageConfig(num_workers=2, num_steps=10)}
    training = f"{Path(__file__).with_suffix('')}.py:Timed"
    recipe = Recipe(training=training, transition=TransitionConfig(max_step=20), **stages)  # type: ignore[arg-type]
    settings = {"num_workers": 1, "num_threads": 1}
    segments = [
        Segment("root", "first_stage", settings, 0, 0, 20),
        Segment("first", "second_stage", settings | {"num_workers": 2}, 20, 20, 30),
    ]
    assert probe(Inputs(recipe), Store(str(tmp_path)), segments, lambda: clock(training)) == {
        "first_stage": StageTimes(1.0, 4.5, 40 + 16),
        "second_stage": StageTimes(1.25, 2.5, 40 + 16),  # two workers share the samples
    }


def clock(training: str) -> float:
    """That of the class as the framework has loaded it, which imports this file by its path."""
    from latentsync_ray.core.training import load_training

    return float(load_training(training).build.__globals__["Clock"].now)
