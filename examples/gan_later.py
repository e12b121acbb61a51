"""When should an autoencoder's adversarial loss come in, and with which learning rate?

Stage one trains an autoencoder of small pictures on the squared error alone. A few latents cannot hold the grain of a
picture, so it paints what is right on average: smooth areas. In stage two a discriminator of patches asks for grain,
as in VQGAN (Esser et al. 2021, arXiv:2012.09841) and MuseTalk (Zhang et al. 2024, arXiv:2410.10122).

`total_steps` is the same for all trials, as in `cooldown.py`: a threshold of 0 is the loss from the start, and one of
`total_steps` is no adversarial loss. The objective adds the squared error and the distance of the spectra, each about
2 where the loss never comes. FINDING
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
from latentsync_ray.config.recipe import Metric, Recipe, SecondStageConfig, StageConfig
from latentsync_ray.core.training import Inputs, Notes, Training, TrainingSetup

NUM_TRAINING, NUM_VALIDATION, SIZE = 2048, 256, 16


@dataclass(frozen=True, kw_only=True)
class ReconstructionStage(StageConfig):
    """Stage one."""

    lr: float = 3e-3
    """Learning rate of the autoencoder."""
    batch_size: int = 16
    """Pictures in a step."""

    def complaints(self) -> Iterator[Complaint]:
        yield from super().complaints()
        for name in ("lr", "batch_size"):
            if not getattr(self, name) > 0:
                yield name, "must be above 0", "raise it"
        if self.num_workers > 1:
            yield "num_workers", "must be 1, since this training does not share a batch", "remove it"


@dataclass(frozen=True, kw_only=True)
class AdversarialStage(ReconstructionStage, SecondStageConfig):
    """Stage two, whose learning rates fall to 0 at `total_steps`."""

    discriminator_lr: float = 2e-3
    """Learning rate of the discriminator."""
    adversarial_weight: float = 0.1
    """Weight of the adversarial loss beside the squared error."""


@dataclass(frozen=True, kw_only=True)
class GanLaterRecipe(Recipe):
    """An autoencoder whose adversarial loss comes later."""

    first_stage: ReconstructionStage
    """Stage one, from `first_stage.yaml`."""
    second_stage: AdversarialStage
    """Stage two, from `second_stage.yaml`."""
    total_steps: int = 360
    """Steps of both stages together."""

    def metrics(self) -> Mapping[str, Metric]:
        return {"val/objective": Metric(), "val/recon": Metric(), "val/spectrum": Metric()}

    def objective(self) -> Mapping[str, float]:
        return {"val/recon": 80.0, "val/spectrum": 1.0}

    def complaints(self) -> Iterator[Complaint]:
        yield from super().complaints()
        if self.transition.min_step + self.second_stage.num_steps < self.total_steps:
            yield "second_stage.num_steps", f"must reach total_steps ({self.total_steps})", "raise it"


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
            encoder = [nn.Conv2d(1, 16, 4, 2, 1), act, nn.Conv2d(16, 32, 4, 2, 1), act, nn.Conv2d(32, 2, 1)]
            grow = [nn.ConvTranspose2d(32, 16, 4, 2, 1), act, nn.ConvTranspose2d(16, 1, 4, 2, 1)]
            self.model = nn.ModuleDict({"made": nn.Sequential(*encoder, nn.Conv2d(2, 32, 3, 1, 1), act, *grow)})
            if isinstance(config, AdversarialStage):
                judge = [nn.Conv2d(1, 32, 4, 2, 1), act, nn.Conv2d(32, 32, 3, 1, 1), act, nn.Conv2d(32, 1, 1)]
                self.model["verdict"] = nn.Sequential(*judge)
        self.model.to(self.setup.device)
        groups = [{"params": network.parameters()} for network in self.model.values()]
        self.optimizer = torch.optim.Adam(groups, config.lr, betas=(0.5, 0.99), fused=True)
        if state is None:
            return
        weights = {name: state[f"model.{name}"] for name in self.model.state_dict() if f"model.{name}" in state}
        self.model.load_state_dict(weights, strict=stage == state_stage)  # the discriminator comes with stage two
        for name, parameter in self.model.named_parameters() if stage == state_stage else ():
            for moment in ("step", "exp_avg", "exp_avg_sq"):
                stored = state[f"optimizer.{name}.{moment}"]
                self.optimizer.state[parameter][moment] = stored.to(self.setup.device, copy=True)

    def step(self, global_step: int, stage_step: int) -> dict[str, float]:
        draws = np.random.default_rng((self.setup.seed, global_step))
        real = self.pictures[draws.integers(NUM_TRAINING, size=self.config.batch_size)]
        made = self.model["made"](real)
        losses = {"recon": (made - real).square().mean()}
        loss, total = losses["recon"], self.setup.recipe.total_steps
        if isinstance(self.config, AdversarialStage):
            of_real, of_made = self.model["verdict"](torch.cat([real, made])).chunk(2)
            losses["adversarial"] = -of_made.mean()
            losses["discriminator"] = (1 - of_real).relu().mean() + (1 + of_made).relu().mean()
            loss = loss + self.config.adversarial_weight * losses["adversarial"]
        if global_step < total:
            self.optimizer.zero_grad()
            loss.backward(inputs=list(self.model["made"].parameters()), retain_graph=True)
            if isinstance(self.config, AdversarialStage):
                losses["discriminator"].backward(inputs=list(self.model["verdict"].parameters()))
                left = (total - global_step) / (total - global_step + stage_step)
                rates = (self.config.lr, self.config.discriminator_lr)
                for group, lr in zip(self.optimizer.param_groups, rates, strict=True):
                    group["lr"] = left * lr
            self.optimizer.step()
        return {name: value.item() for name, value in losses.items()}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        made = self.model["made"](self.held_out)
        powers = [torch.fft.rfft2(pictures).abs().square().mean(0).log() for pictures in (made, self.held_out)]
        recon, spectrum = (made - self.held_out).square().mean(), (powers[0] - powers[1]).abs().mean()
        return {"val/recon": recon.item(), "val/spectrum": spectrum.item()}

    def state(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            tensors |= {f"optimizer.{name}.{m}": value for m, value in self.optimizer.state[parameter].items()}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    @torch.no_grad()
    def preview(self) -> Tensor:
        rows = [self.held_out[:8], self.model["made"](self.held_out[:8])]
        picture = torch.cat([torch.cat(list(row[:, 0]), 1) for row in rows])
        return ((picture + 1) * 127.5).clamp(0, 255).byte().cpu()[..., None].repeat(1, 1, 3)


def draw() -> Tensor:
    """Disks and boxes with a grain: (NUM_TRAINING + NUM_VALIDATION, 1, 16, 16), float32, -0.5 to 0.65."""
    y, x = np.mgrid[:SIZE, :SIZE]
    pictures = []
    for number in range(NUM_TRAINING + NUM_VALIDATION):
        draws = np.random.default_rng(number)
        picture = np.full((SIZE, SIZE), -0.5)
        for brightness in (0.0, 0.5):
            (cy, cx), radius = draws.uniform(3, SIZE - 3, 2), draws.uniform(2, 5)
            far = np.hypot(y - cy, x - cx) if draws.random() < 0.5 else np.maximum(abs(y - cy), abs(x - cx))
            picture = np.where(far < radius, brightness + draws.choice([-0.15, 0.15], (SIZE, SIZE)), picture)
        pictures.append(picture)
    return torch.from_numpy(np.stack(pictures)[:, None].astype(np.float32))
