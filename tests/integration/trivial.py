"""A two-stage training that costs nothing, for tests of everything around it.

Its state is one weight that mixes in every hyperparameter and step, so that a wrong parent, step, stage or learning
rate shows in every later metric. `model:` settings make it slow, or make it fail.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from latentsync_ray.config.recipe import StageConfig
from latentsync_ray.core.training import TrainingSetup


class TrivialTraining:
    def __init__(self, setup: TrainingSetup):
        self.setup = setup

    @staticmethod
    def check(config: StageConfig, start: str | None) -> None:
        unknown = set(config.model) - {
            "step_seconds",
            "fail_at_step",
            "nan_at_step",
            "fail_once",
            "kill_once",
            "grow",
        }
        if unknown:
            raise ValueError(f"unknown settings {sorted(unknown)}")

    def build(self, stage: str, config: StageConfig, state: Mapping[str, Tensor] | None, state_stage: str) -> None:
        self.stage, self.config = stage, config
        self.weight = torch.tensor(float(self.setup.seed), dtype=torch.float64)
        self.moment = torch.zeros((), dtype=torch.float64)
        if state is not None:
            self.weight = state["model.weight"].clone()
        if state is not None and stage == state_stage:
            self.moment = state["optimizer.weight.exp_avg"].clone()

    def step(self, global_step: int, stage_step: int) -> dict[str, float]:
        time.sleep(self.config.model.get("step_seconds", 0))
        self._maybe_fail(global_step)
        gradient = torch.sin(self.weight * 3 + global_step * 0.7 + stage_step * 1.3 + len(self.stage))
        if self.setup.world_size > 1:
            dist.all_reduce(gradient)
        self.moment = 0.9 * self.moment + gradient
        self.weight = self.weight - self.config.optimizer.lr * self.moment
        return {"loss": float(gradient) ** 2, "recon": float(gradient) ** 2}

    def validate(self) -> dict[str, float]:
        recon = float(torch.exp(-self.weight.abs()) + 0.1) * self.config.model.get("grow", 1)
        return {"val/recon": recon, "val/sync": recon / 2, "val/lpips": 0.1, "val/trepa": 0.0}

    def preview(self) -> Tensor:
        noise = torch.Generator().manual_seed(int(self.weight.abs() * 1000))
        return torch.randint(256, (24, 24, 3), dtype=torch.uint8, generator=noise)

    def state(self) -> dict[str, Tensor]:
        return {"model.weight": self.weight.reshape(1), "optimizer.weight.exp_avg": self.moment.reshape(1)}

    def _maybe_fail(self, global_step: int) -> None:
        """Faults on request; a fault that happens once leaves a file behind to know it by."""
        model = self.config.model
        if model.get("fail_at_step") == global_step:
            raise RuntimeError("a fault that comes again")
        if model.get("nan_at_step") == global_step and self.setup.rank == self.setup.world_size - 1:
            raise FloatingPointError(f"step {global_step}: the recon loss is nan")
        for fault, marker in ((n, model[n]) for n in ("fail_once", "kill_once") if n in model):
            step, file = marker["step"], Path(marker["file"])
            if step == global_step and self.setup.rank == self.setup.world_size - 1 and not file.exists():
                file.touch()
                if fault == "kill_once":
                    os.kill(os.getpid(), 9)
                raise OSError("a fault that happens once")
