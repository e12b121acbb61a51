"""A two-stage training that costs nothing, for tests of everything around it.

Its state is one weight that mixes in every hyperparameter and step, so that a wrong parent, step, stage or learning
rate shows in every later metric. `model:` settings make it slow, or fail: with `nan_above` (`explode_above`) 1
the loss is nan (100 times as high) once the stage's steps times the learning rate are above 1, so that trials with
other learning rates diverge at other steps.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from latentsync_ray.config.errors import Complaint
from latentsync_ray.config.recipe import Metric, Recipe, SecondStageConfig, StageConfig
from latentsync_ray.core.terms import Terms
from latentsync_ray.core.training import Training, TrainingSetup

WEIGHTS = {"val/recon": 1.0, "val/sync": 0.05, "val/lpips": 0.1, "val/trepa": 10.0}
FAULTS = {
    "step_seconds",
    "fail_at_step",
    "nan_at_step",
    "nan_above",
    "explode_above",
    "fail_once",
    "hang_once",
    "kill_times",
    "grow",
    "state_mb",
}
MARKED = ("fail_once", "hang_once", "kill_times")
"""Faults of which a file is left behind each time, to know them by."""


@dataclass(frozen=True)
class Optimizer:
    """The only hyperparameter."""

    lr: float = 0.01


@dataclass(frozen=True, kw_only=True)
class Stage(StageConfig):
    model: dict[str, Any] = field(default_factory=dict)
    """Faults on request."""
    optimizer: Optimizer = field(default_factory=Optimizer)

    def complaints(self) -> Iterator[Complaint]:
        yield from super().complaints()
        if unknown := set(self.model) - FAULTS:
            yield "model", f"must not have {sorted(unknown)}", "remove them"


@dataclass(frozen=True, kw_only=True)
class SecondStage(Stage, SecondStageConfig):
    """Stage two."""


@dataclass(frozen=True, kw_only=True)
class TrivialRecipe(Recipe):
    first_stage: Stage
    second_stage: SecondStage

    def metrics(self) -> Mapping[str, Metric]:
        return {name: Metric() for name in WEIGHTS}

    def objective(self) -> Mapping[str, float]:
        return WEIGHTS


class TrivialTraining(Training[TrivialRecipe]):
    recipe_type = TrivialRecipe

    def __init__(self, setup: TrainingSetup[TrivialRecipe]):
        self.setup = setup

    def build(self, stage: str, config: StageConfig, state: Mapping[str, Tensor] | None, state_stage: str) -> None:
        self.stage, self.config = stage, config
        self.weight = torch.tensor(float(self.setup.seed), dtype=torch.float64)
        self.moment = torch.zeros((), dtype=torch.float64)
        if state is not None:
            self.weight = state["model.weight"].clone()
            if "model.ballast" in state and not torch.equal(state["model.ballast"], self._ballast()):
                raise RuntimeError("the state's parts are of different steps")
        if state is not None and stage == state_stage:
            self.moment = state["optimizer.weight.exp_avg"].clone()

    def step(self, global_step: int, stage_step: int) -> dict[str, float]:
        time.sleep(self.config.model.get("step_seconds", 0))
        self._maybe_fail(global_step)
        self._reached = stage_step + 1
        if self._reached * self.config.optimizer.lr > self.config.model.get("nan_above", math.inf):
            raise FloatingPointError(f"step {global_step}: the recon loss is nan")
        gradient = torch.sin(self.weight * 3 + global_step * 0.7 + stage_step * 1.3 + len(self.stage))
        if self.setup.world_size > 1:
            dist.all_reduce(gradient)
        self.moment = 0.9 * self.moment + gradient
        self.weight = self.weight - self.config.optimizer.lr * self.moment
        return {"loss": float(gradient) ** 2, "recon": float(gradient) ** 2}

    def validate(self) -> dict[str, float]:
        recon = float(torch.exp(-self.weight.abs()) + 0.1) * self.config.model.get("grow", 1)
        if self._reached * self.config.optimizer.lr > self.config.model.get("explode_above", math.inf):
            recon *= 100
        return {"val/recon": recon, "val/sync": recon / 2, "val/lpips": 0.1, "val/trepa": 0.0}

    def validation_terms(self) -> Terms:
        """Six windows of three clips around each metric."""
        shares, clips = (0.95, 0.97, 0.99, 1.01, 1.03, 1.05), ("a/0", "a/0", "b/0", "b/0", "c/0", "c/0")
        values = {name: [value * share for share in shares] for name, value in self.validate().items()}
        return Terms(clips, clips, values)

    def preview(self) -> Tensor:
        noise = torch.Generator().manual_seed(int(self.weight.abs() * 1000))
        return torch.randint(256, (24, 24, 3), dtype=torch.uint8, generator=noise)

    def state(self) -> dict[str, Tensor]:
        state = {"model.weight": self.weight.reshape(1), "optimizer.weight.exp_avg": self.moment.reshape(1)}
        return state | ({"model.ballast": self._ballast()} if "state_mb" in self.config.model else {})

    def _ballast(self) -> Tensor:
        """A tensor of `state_mb` megabytes that depends on the weight alone."""
        return self.weight * torch.arange(1, self.config.model["state_mb"] * 2**17 + 1, dtype=torch.float64)

    def _maybe_fail(self, global_step: int) -> None:
        """Faults on request."""
        model = self.config.model
        if model.get("fail_at_step") == global_step:
            raise RuntimeError("a fault that comes again")
        if self.setup.rank < self.setup.world_size - 1:
            return
        if model.get("nan_at_step") == global_step:
            raise FloatingPointError(f"step {global_step}: the recon loss is nan")
        for fault in MARKED:
            if fault in model and model[fault]["step"] == global_step and _mark(**model[fault]):
                if fault == "kill_times":
                    os.kill(os.getpid(), 9)
                if fault == "hang_once":
                    time.sleep(3600)
                raise OSError("a fault that happens once")


def _mark(file: str, times: int = 1, **_: int) -> bool:
    """Whether a fault is to happen, which it does so many times; each time makes a file."""
    for number in range(times):
        marker = Path(file if number == 0 else f"{file}-{number}")
        if not marker.exists():
            marker.touch()
            return True
    return False
