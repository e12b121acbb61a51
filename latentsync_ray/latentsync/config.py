"""LatentSync's sections of a recipe, with the rules of every value.

Values and defaults follow LatentSync (Li et al. 2024, https://github.com/bytedance/LatentSync, `configs/unet`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from latentsync_ray.config.errors import Complaint, seed_complaints
from latentsync_ray.config.recipe import Metric, Recipe, SecondStageConfig, StageConfig
from latentsync_ray.latentsync.data.config import DataConfig
from latentsync_ray.latentsync.optimizer import LRSchedulerConfig, OptimizerConfig

LOSS_TERMS = ("recon", "sync", "lpips", "trepa")
_COMPONENTS = {"sync": "syncnet", "lpips": "lpips", "trepa": "video_encoder"}
"""Loss term -> the component without which it is not computed."""


@dataclass(frozen=True)
class ComponentsConfig:
    """The frozen networks and the first weights: each a path, or a hub id where no such path exists.

    What begins with `.`, `/` or `~` is always a path.
    """

    vae: str
    """AutoencoderKL or AutoencoderTiny (diffusers)."""
    audio_encoder: str | None = None
    """Whisper encoder (transformers), for the preparation of synthetic clips; others are prepared before."""
    syncnet: str | None = None
    """StableSyncNet, for the sync loss."""
    lpips: str | None = None
    """VGG features with their linear weights, for the LPIPS loss."""
    video_encoder: str | None = None
    """VideoMAE (transformers), for the TREPA loss."""
    unet: str | None = None
    """Weights that training starts from: LatentSync's own checkpoint (.pt), a .safetensors file, or a UNet folder;
    null draws random ones. With `transition.at_step` 0 it is stage two that starts from them."""


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss terms; a term of weight 0 is not computed."""

    recon: float = 1.0
    """Mean squared error of the predicted noise."""
    sync: float = 0.0
    """SyncNet cosine loss on decoded frames."""
    lpips: float = 0.0
    """Perceptual distance of decoded frames."""
    trepa: float = 0.0
    """Distance of the video encoder's features of decoded frames."""

    @property
    def of_pixels(self) -> bool:
        """Whether frames are decoded for it."""
        return max(self.sync, self.lpips, self.trepa) > 0

    def complaints(self) -> Iterator[Complaint]:
        """The rules that these values break."""
        for term in LOSS_TERMS:
            weight = getattr(self, term)
            if not (math.isfinite(weight) and weight >= 0):
                yield term, "must be finite and not negative", "give a weight of 0 or more"
        if not any(getattr(self, term) > 0 for term in LOSS_TERMS):
            yield "recon", "at least one loss weight must be positive", "raise one of " + ", ".join(LOSS_TERMS)


@dataclass(frozen=True)
class ValidationConfig:
    """The fixed validation set, with fixed timesteps and noise."""

    num_samples: int = 8
    """Windows of `data.num_frames` frames, spread over the held-out clips."""
    timesteps: tuple[int, ...] = (100, 300, 500, 700, 900)
    """Diffusion timesteps, 0 to 999, at which every sample is measured."""
    batch_size: int = 5
    """Pairs of a window and a timestep that are measured at a time."""
    seed: int = 0
    """Chooses the windows and the noise."""
    mixed_noise_alpha: float = 1.0
    """As in training, but the same for all trials and stages."""
    objective: LossConfig = field(default_factory=lambda: LossConfig(1.0, 0.05, 0.1, 10.0))
    """Weights of `val/objective`, the same for every trial whatever its own loss."""

    def complaints(self) -> Iterator[Complaint]:
        """The rules that these values break."""
        for name in ("num_samples", "batch_size"):
            if getattr(self, name) < 1:
                yield name, "must be at least 1", "raise it"
        if not self.timesteps or not all(0 <= t <= 999 for t in self.timesteps):
            yield "timesteps", "must be a list of values from 0 to 999", "name at least one, for example [500]"
        yield from seed_complaints(self.seed)
        if self.mixed_noise_alpha < 0 or not math.isfinite(self.mixed_noise_alpha):
            yield "mixed_noise_alpha", "must be finite and not negative", "1 is the official value"


@dataclass(frozen=True, kw_only=True)
class LatentSyncStage(StageConfig):
    """One stage: the model, what of it is trained, on which losses, how, and on how many processes."""

    model: dict[str, Any]
    """Keyword arguments of the UNet, as in LatentSync's `model:` section."""
    trainable_modules: tuple[str, ...] | None = None
    """Parts of parameter names; a parameter that contains one of them is trained. null trains everything."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Weights of the loss terms."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The stage's own optimizer."""
    lr_scheduler: LRSchedulerConfig = field(default_factory=LRSchedulerConfig)
    """The stage's own learning-rate schedule."""
    batch_size: int = 1
    """Samples a step over all workers and micro-batches."""
    gradient_accumulation_steps: int = 1
    """Micro-batches of a worker's share, one after another: less memory, the same step."""
    gradient_checkpointing: Literal["auto", True, False] = "auto"
    """Computes activations again in the backward pass instead of keeping them: less memory, more time, the same bits.
    `auto` does so on a GPU on which a step does not fit otherwise, and never on a CPU."""
    mixed_noise_alpha: float = 1.0
    """Share of the noise that is common to the frames of a clip (PYoCo, Ge et al. 2023); 0 for none."""
    ema_decay: float = 0.0
    """Decay of an exponential moving average of the trained weights; where it is above 0, the average is what is
    validated, exported and handed on to stage two."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """bfloat16 and float16 run the networks under autocast, float16 with a scaled loss."""
    compile: bool = False
    """Runs the UNet through torch.compile: a slow start, then faster steps on a GPU."""

    def complaints(self) -> Iterator[Complaint]:
        """The rules that these values break."""
        yield from super().complaints()
        for name in ("batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                yield name, "must be at least 1", "raise it"
        shares = self.num_workers * self.gradient_accumulation_steps
        if self.num_workers >= 1 and self.batch_size % self.num_workers:
            rule = f"must be a multiple of num_workers ({self.num_workers})"
            yield "batch_size", rule, "change either, so that every worker gets an equal share"
        elif shares >= 1 and self.batch_size % shares:
            rule = f"must be a multiple of num_workers * gradient_accumulation_steps ({shares})"
            yield "batch_size", rule, "change either, so that all micro-batches are equal"
        if self.mixed_noise_alpha < 0 or not math.isfinite(self.mixed_noise_alpha):
            yield "mixed_noise_alpha", "must be finite and not negative", "1 is the official value"
        if not 0 <= self.ema_decay < 1:
            yield "ema_decay", "must be at least 0 and below 1", "0 switches it off, 0.9999 is usual"
        if self.trainable_modules is not None and not self.trainable_modules:
            yield "trainable_modules", "must name at least one module", "null trains everything"


@dataclass(frozen=True, kw_only=True)
class LatentSyncSecondStage(LatentSyncStage, SecondStageConfig):
    """Stage two."""


@dataclass(frozen=True, kw_only=True)
class LatentSyncRecipe(Recipe):
    """LatentSync's two stages on prepared clips."""

    folders: ClassVar[tuple[str, ...]] = ("data.folder",)
    sources: ClassVar[tuple[str, ...]] = tuple(f"components.{f.name}" for f in fields(ComponentsConfig))
    # The objective's weights are applied to what was measured; data and components count by their contents.
    not_in_key: ClassVar[tuple[str, ...]] = ("data.folder", "data.synthetic", "components", "validation.objective")
    not_in_segments: ClassVar[tuple[str, ...]] = ("gradient_checkpointing",)
    shape_settings: ClassVar[tuple[str, ...]] = ("model",)

    data: DataConfig
    """The prepared clips."""
    components: ComponentsConfig
    """The frozen networks."""
    first_stage: LatentSyncStage
    """Stage one, from `first_stage.yaml`."""
    second_stage: LatentSyncSecondStage
    """Stage two, from `second_stage.yaml`."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """The fixed validation."""

    def metrics(self) -> Mapping[str, Metric]:
        """Each loss term, and SyncNet's confidence."""

        def missing(component: str | None) -> str:
            given = component is None or getattr(self.components, component) is not None
            return "" if given else f"components.{component}"

        terms = {f"val/{term}": Metric("min", missing(_COMPONENTS.get(term))) for term in LOSS_TERMS}
        confidence = Metric("max", missing("syncnet"))
        return {**terms, "val/sync_confidence": confidence}

    def objective(self) -> Mapping[str, float]:
        """`validation.objective`, by metric."""
        return {f"val/{term}": weight for term, weight in vars(self.validation.objective).items() if weight > 0}

    def complaints(self) -> Iterator[Complaint]:
        """The rules that these values break together."""
        yield from super().complaints()
        if self.data.synthetic is not None and self.components.audio_encoder is None:
            yield "components.audio_encoder", "must be given, since data.synthetic is", "name a folder or hub id"
        users = {
            "first_stage.loss": self.first_stage.loss,
            "second_stage.loss": self.second_stage.loss,
            "validation.objective": self.validation.objective,
        }
        for term in LOSS_TERMS:
            component = _COMPONENTS.get(term)
            for user, weights in users.items():
                if getattr(weights, term) > 0 and component and getattr(self.components, component) is None:
                    rule = f"must be given, since {user}.{term} is above 0"
                    yield f"components.{component}", rule, f"name a folder or hub id, or set {user}.{term}=0"
