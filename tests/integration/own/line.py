"""A training that knows nothing of LatentSync: a line fitted by gradient descent, with its own section and metric."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from latentsync_ray.config.errors import Complaint
from latentsync_ray.config.recipe import Metric, Recipe, SecondStageConfig, StageConfig
from latentsync_ray.core.training import Inputs, Notes, Training, TrainingSetup


@dataclass(frozen=True)
class LineConfig:
    """The line that is looked for."""

    slope: float = 2.0
    """Its slope."""
    step_seconds: float = 0.0
    """How long a step takes, so that a test can interrupt it."""

    def complaints(self) -> Iterator[Complaint]:
        """The rules that these values break."""
        if self.step_seconds < 0:
            yield "step_seconds", "must not be negative", "0 is usual"


@dataclass(frozen=True, kw_only=True)
class Stage(StageConfig):
    lr: float = 0.1


@dataclass(frozen=True, kw_only=True)
class SecondStage(Stage, SecondStageConfig):
    """Stage two."""


@dataclass(frozen=True, kw_only=True)
class LineRecipe(Recipe):
    not_in_key = ("line.step_seconds",)

    first_stage: Stage
    second_stage: SecondStage
    line: LineConfig = LineConfig()

    def metrics(self) -> Mapping[str, Metric]:
        return {"val/error": Metric(), "val/slope": Metric("max")}

    def objective(self) -> Mapping[str, float]:
        return {"val/error": 1.0}


class FitLine(Training[LineRecipe]):
    recipe_type = LineRecipe

    @classmethod
    def prepare(cls, recipe: LineRecipe, notes: Notes) -> Inputs[LineRecipe]:
        return Inputs(recipe, figures={"slope": recipe.line.slope}, warnings=("the line is drawn",))

    def __init__(self, setup: TrainingSetup[LineRecipe]):
        self.line = setup.recipe.line
        self.seed = setup.seed

    def build(self, stage: str, config: StageConfig, state: Mapping[str, Tensor] | None, state_stage: str) -> None:
        assert isinstance(config, Stage)
        self.config = config
        self.slope = torch.zeros(1) if state is None else state["model.slope"].clone()

    def step(self, global_step: int, stage_step: int) -> dict[str, float]:
        time.sleep(self.line.step_seconds)
        noise = torch.randn((), generator=torch.Generator().manual_seed(1000 * self.seed + global_step))
        error = self.slope - self.line.slope + 0.1 * noise
        self.slope = self.slope - self.config.lr * error
        return {"error": float(error.abs())}

    def validate(self) -> dict[str, float]:
        return {"val/error": float((self.slope - self.line.slope).abs()), "val/slope": float(self.slope)}

    def state(self) -> dict[str, Tensor]:
        return {"model.slope": self.slope}
