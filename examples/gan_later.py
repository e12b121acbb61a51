"""When should an autoencoder's adversarial loss come in, and with which learning rate?

Stage one trains an autoencoder of small pictures on the squared error alone, which leaves out their grain. Stage two
has a discriminator for it, as in VQGAN (Esser et al. 2021, arXiv:2012.09841). Lengths are as in `cooldown.py`.
The objective adds the squared error and the distance of the mean spectra, each about 1.9 if the loss never comes. On
seeds 0 to 2 it should come at 240 of 360 steps: 3.07, 3.25, 3.58; never 3.57, 3.73, 3.81; at once 3.30, 3.41, 3.75.
The weights, chosen after a look, decide: with an eighth for the squared error, at once is best or within 1 % of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from latentsync_ray.config.errors import Complaint
from latentsync_ray.config.length import LengthConfig
from latentsync_ray.config.recipe import Metric, Recipe, SecondStageConfig, StageConfig
from latentsync_ray.core.training import Inputs, Notes, Training, TrainingSetup

NUM_TRAINING, NUM_VALIDATION, SIZE, BATCH_SIZE, DISCRIMINATOR_LR = 2048, 256, 16, 16, 2e-3


@dataclass(frozen=True, kw_only=True)
class ReconstructionStage(StageConfig):
    """Stage one."""

    lr: float = 3e-3
    """Learning rate of the autoencoder."""

    def complaints(self) -> Iterator[Complaint]:
        yield from super().complaints()
        if self.num_workers > 1:
            yield "num_workers", "must be 1, since this training does not share a batch", "remove it"


@dataclass(frozen=True, kw_only=True)
class AdversarialStage(ReconstructionStage, SecondStageConfig):
    """Stage two, whose learning rates fall to 0 at `total_steps`."""

    adversarial_weight: float = 0.1
    """Of the adversarial loss beside the squared error."""


@dataclass(frozen=True, kw_only=True)
class GanLaterRecipe(Recipe):
    """An autoencoder whose adversarial loss comes later."""

    first_stage: ReconstructionStage
    second_stage: AdversarialStage
    total_steps: int = 360
    """Steps of both stages together, the same as `length`."""

    def metrics(self) -> Mapping[str, Metric]:
        return {"val/recon": Metric(), "val/spectrum": Metric()}

    def objective(self) -> Mapping[str, float]:
        return {"val/recon": 80.0, "val/spectrum": 1.0}

    def complaints(self) -> Iterator[Complaint]:
        yield from super().complaints()
        if self.length != LengthConfig(steps=self.total_steps):
            yield "length", f"must be {{steps: {self.total_steps}}}, as total_steps says", "change either"


class GanLater(Training[GanLaterRecipe]):
    """A convolutional autoencoder and a discriminator of patches under Adam, with the hinge loss."""

    recipe_type: ClassVar[type[Recipe]] = GanLaterRecipe

    @classmethod
    def prepare(cls, recipe: GanLaterRecipe, notes: Notes) -> Inputs[GanLaterRecipe]:
        return Inputs(recipe, {"pictures": hashlib.sha256(draw().numpy().tobytes()).hexdigest()})

    def __init__(self, setup: TrainingSetup[GanLaterRecipe]):
        self.setup = setup
        self.pictures, self.held_out = draw().to(setup.device).split([NUM_TRAINING, NUM_VALIDATION])

    def build(self, stage: str, config: StageConfig, state: Mapping[str, Tensor] | None, state_stage: str) -> None:
        assert isinstance(config, ReconstructionStage)
        self.config, act = config, nn.LeakyReLU(0.2)
        with torch.random.fork_rng(devices=[]):  # the first weights are a pure function of the seed
            torch.manual_seed(self.setup.seed)
            shrink = [nn.Conv2d(1, 16, 4, 2, 1), act, nn.Conv2d(16, 32, 4, 2, 1), act, nn.Conv2d(32, 2, 1)]
            grow = [nn.ConvTranspose2d(32, 16, 4, 2, 1), act, nn.ConvTranspose2d(16, 1, 4, 2, 1)]
            self.model = nn.ModuleDict({"made": nn.Sequential(*shrink, nn.Conv2d(2, 32, 3, 1, 1), act, *grow)})
            if isinstance(config, AdversarialStage):
                patches = nn.Conv2d(1, 32, 4, 2, 1), act, nn.Conv2d(32, 32, 3, 1, 1), act, nn.Conv2d(32, 1, 1)
                self.model["verdict"] = nn.Sequential(*patches)
        self.model.to(self.setup.device)
        peaks = (config.lr, DISCRIMINATOR_LR)
        groups = [{"params": n.parameters(), "peak": p} for n, p in zip(self.model.values(), peaks, strict=False)]
        self.optimizer = torch.optim.Adam(groups, config.lr, betas=(0.5, 0.99), fused=True)
        weights = {n.removeprefix("model."): t for n, t in (state or {}).items() if n.startswith("model.")}
        # The discriminator is new in stage two.
        self.model.load_state_dict(weights, strict=state is not None and stage == state_stage)
        for name, parameter in self.model.named_parameters() if state and stage == state_stage else ():
            names = {m: f"optimizer.{name}.{m}" for m in ("step", "exp_avg", "exp_avg_sq")}
            moments = {m: state[full] for m, full in names.items() if full in state}  # none before the first step
            self.optimizer.state[parameter] = {m: t.to(self.setup.device, copy=True) for m, t in moments.items()}

    def step(self, global_step: int, stage_step: int) -> dict[str, float]:
        draws = np.random.default_rng((self.setup.seed, global_step))
        real = self.pictures[draws.integers(NUM_TRAINING, size=BATCH_SIZE)]
        made = self.model["made"](real)
        losses = {"recon": (made - real).square().mean()}
        aims, steps_left = {"made": losses["recon"]}, self.setup.recipe.total_steps - global_step
        if isinstance(self.config, AdversarialStage):
            of_real, of_made = self.model["verdict"](torch.cat([real, made])).chunk(2)
            aims["made"] = losses["recon"] - self.config.adversarial_weight * of_made.mean()
            aims["verdict"] = losses["discriminator"] = (1 - of_real).relu().mean() + (1 + of_made).relu().mean()
        self.optimizer.zero_grad()
        for (network, aim), group in zip(aims.items(), self.optimizer.param_groups, strict=True):
            aim.backward(inputs=list(self.model[network].parameters()), retain_graph=True)
            if isinstance(self.config, AdversarialStage):
                group["lr"] = group["peak"] * steps_left / (steps_left + stage_step)
        self.optimizer.step()
        return {name: value.item() for name, value in losses.items()}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        made = self.model["made"](self.held_out)
        powers = [torch.fft.rfft2(pictures).abs().square().mean(0).log() for pictures in (made, self.held_out)]
        metrics = {"recon": (made - self.held_out).square().mean(), "spectrum": (powers[0] - powers[1]).abs().mean()}
        return {f"val/{name}": value.item() for name, value in metrics.items()}

    def state(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            tensors |= {f"optimizer.{name}.{m}": value for m, value in self.optimizer.state[parameter].items()}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def draw() -> Tensor:
    """Disks and boxes with a grain: (NUM_TRAINING + NUM_VALIDATION, 1, 16, 16), float32, -0.5 to 0.65."""
    places, pictures = np.mgrid[:SIZE, :SIZE], []
    for number in range(NUM_TRAINING + NUM_VALIDATION):
        draws, picture = np.random.default_rng(number), np.full((SIZE, SIZE), -0.5)
        for brightness in (0.0, 0.5):
            (dy, dx), radius = places - draws.uniform(3, SIZE - 3, (2, 1, 1)), draws.uniform(2, 5)
            far = np.hypot(dy, dx) if draws.random() < 0.5 else np.maximum(abs(dy), abs(dx))
            picture = np.where(far < radius, brightness + draws.choice([-0.15, 0.15], (SIZE, SIZE)), picture)
        pictures.append(picture)
    return torch.from_numpy(np.stack(pictures)[:, None].astype(np.float32))
