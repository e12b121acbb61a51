"""When should a language model's cooldown begin, and at which learning rate should it end?

Stage one trains a small character-level model on the text of Python's `help` at a constant learning rate, which falls
in stage two: "warm-up, stable, decay" (Hu et al. 2024, arXiv:2404.06395; Hägele et al. 2024, arXiv:2405.18392).
A threshold of 0 is a decay from the first step on; none at all is a baseline. All trials have the same length, at
which the decay ends. `length` is in no key, since it only says where a trial ends, so the decay has `total_steps`.

What it found on seeds 0 to 2: a decay over the last 200 of 800 steps, to 5e-4 rather than 0, is best, with a loss of
1.979, 1.956 and 1.979; without one it is 1.997, 1.973 and 2.003, with one from the start 2.023, 2.005 and 2.018.
This holds for an `lr` of 3e-3, which was chosen after a look: with 5e-3 or more, to decay at once was best on seed 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pydoc_data.topics import topics
from typing import ClassVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from latentsync_ray.config.errors import Complaint
from latentsync_ray.config.length import LengthConfig
from latentsync_ray.config.recipe import Metric, Recipe, SecondStageConfig, StageConfig
from latentsync_ray.core.training import Inputs, Notes, Training, TrainingSetup

TEXT = "\n".join(topics[name] for name in sorted(topics)).encode("ascii", "replace")


@dataclass(frozen=True)
class LanguageModelConfig:
    """The model, and what both stages train it with."""

    context: int = 12
    """Characters from which the model predicts the next one."""
    batch_size: int = 64
    """Characters predicted in a step, over all workers."""
    lr: float = 3e-3
    """Learning rate of stage one, from which stage two comes down."""

    def complaints(self) -> Iterator[Complaint]:
        for name in ("context", "batch_size", "lr"):
            if not getattr(self, name) > 0:
                yield name, "must be above 0", "raise it"


@dataclass(frozen=True, kw_only=True)
class DecayConfig(SecondStageConfig):
    """Stage two."""

    final_lr: float = 0.0
    """Learning rate at `total_steps`."""

    def complaints(self) -> Iterator[Complaint]:
        yield from super().complaints()
        if not self.final_lr >= 0:
            yield "final_lr", "must not be negative", "0 is usual"


@dataclass(frozen=True, kw_only=True)
class CooldownRecipe(Recipe):
    """A language model's training with a cooldown; stage one has no settings of its own."""

    second_stage: DecayConfig
    language_model: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    total_steps: int = 800
    """Steps of both stages together, the same as `length`."""

    def metrics(self) -> Mapping[str, Metric]:
        return {"val/loss": Metric()}

    def objective(self) -> Mapping[str, float]:
        return {"val/loss": 1.0}

    def complaints(self) -> Iterator[Complaint]:
        yield from super().complaints()
        if self.length != LengthConfig(steps=self.total_steps):
            yield "length", f"must be {{steps: {self.total_steps}}}, as total_steps says", "change either"
        for stage in ("first_stage", "second_stage"):
            if self.language_model.batch_size % max(1, getattr(self, stage).num_workers):
                yield f"{stage}.num_workers", "must divide language_model.batch_size", "change either"


class Cooldown(Training[CooldownRecipe]):
    """A feed-forward language model (Bengio et al. 2003) under AdamW."""

    recipe_type: ClassVar[type[Recipe]] = CooldownRecipe

    @classmethod
    def prepare(cls, recipe: CooldownRecipe, notes: Notes) -> Inputs[CooldownRecipe]:
        return Inputs(recipe, {"text": hashlib.sha256(TEXT).hexdigest()}, {"text.characters": len(TEXT)})

    def __init__(self, setup: TrainingSetup[CooldownRecipe]):
        self.setup, self.settings = setup, setup.recipe.language_model
        windows = torch.tensor(list(TEXT), device=setup.device).unfold(0, self.settings.context + 1, 1)
        split = len(windows) * 9 // 10
        self.windows, self.held_out = windows[:split], windows[split + self.settings.context :: 11]

    def build(self, stage: str, config: StageConfig, state: Mapping[str, Tensor] | None, state_stage: str) -> None:
        self.decay = config if isinstance(config, DecayConfig) else None
        with torch.random.fork_rng(devices=[]):  # the first weights are a pure function of the seed
            torch.manual_seed(self.setup.seed)
            hidden = [nn.Linear(16 * self.settings.context, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()]
            self.model = nn.Sequential(nn.Embedding(128, 16), nn.Flatten(), *hidden, nn.Linear(128, 128))
        self.model.to(self.setup.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), betas=(0.9, 0.98), fused=True)
        if state is not None:
            self.model.load_state_dict({name: state[f"model.{name}"] for name in self.model.state_dict()})
        for name, parameter in self.model.named_parameters() if state and stage == state_stage else ():
            for moment in ("step", "exp_avg", "exp_avg_sq"):
                stored = state.get(f"optimizer.{name}.{moment}")
                if stored is not None:  # none before the first step
                    self.optimizer.state[parameter][moment] = stored.to(self.setup.device, copy=True)

    def step(self, global_step: int, stage_step: int) -> dict[str, float]:
        total, lr = self.setup.recipe.total_steps, self.settings.lr * min(1.0, (global_step + 1) / 20)
        if self.decay is not None:
            lr += stage_step / (total - (global_step - stage_step)) * (self.decay.final_lr - lr)
        draws = np.random.default_rng((self.setup.seed, global_step))
        # Drawn for the global batch, of which each worker takes its share.
        chosen = draws.integers(len(self.windows), size=self.settings.batch_size)
        loss = self._loss(self.windows[np.array_split(chosen, self.setup.world_size)[self.setup.rank]])
        self.optimizer.zero_grad()
        loss.backward()
        if self.setup.world_size > 1:
            for parameter in self.model.parameters():
                dist.all_reduce(parameter.grad.div_(self.setup.world_size))
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        return {"loss": loss.item()}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        return {"val/loss": self._loss(self.held_out).item()}

    def state(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            tensors |= {f"optimizer.{name}.{m}": value for m, value in self.optimizer.state[parameter].items()}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def _loss(self, windows: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.model(windows[:, :-1]), windows[:, -1])
