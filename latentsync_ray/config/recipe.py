"""Typed configuration of a recipe, what is trained, with the rules of every value.

`search_config` has that of a search, what is explored; `configfiles` reads both from YAML and checks the rules.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal


class UserError(Exception):
    """A mistake that the user can mend: one clear line, exit status 2, no traceback."""


# A broken rule: the field, the rule that its value breaks, and the remedy.
Complaint = tuple[str, str, str]

LOSS_TERMS = ("recon", "sync", "lpips", "trepa")
LOWER_IS_BETTER = ("val/objective", *(f"val/{term}" for term in LOSS_TERMS))
VALIDATION_METRICS = (*LOWER_IS_BETTER, "val/sync_confidence")
NEEDED_COMPONENTS = {
    "val/sync": "syncnet",
    "val/sync_confidence": "syncnet",
    "val/lpips": "lpips",
    "val/trepa": "video_encoder",
}
"""Metric -> the component without which it is not measured."""


@dataclass(frozen=True)
class SyntheticConfig:
    """Talking faces that the repository draws itself, for a recipe that needs no data from outside."""

    num_speakers: int = 6
    """Speakers in all, numbered from 0."""
    num_validation_speakers: int = 1
    """How many of them, the last ones, are held out for validation."""
    clips_per_speaker: int = 4
    """Clips of each speaker."""
    num_frames: int = 100
    """Frames of each clip, at 25 a second."""
    resolution: int = 64
    """Height and width in pixels."""
    seed: int = 0
    """What is drawn is a pure function of these settings."""

    def complaints(self) -> Iterator[Complaint]:
        """The rules that these values break."""
        for name in ("num_speakers", "clips_per_speaker", "num_frames", "resolution"):
            if getattr(self, name) < 1:
                yield name, "must be at least 1", "raise it"
        if not 1 <= self.num_validation_speakers < self.num_speakers:
            yield "num_validation_speakers", "must be at least 1 and below num_speakers", "change either"
        yield from _seed_complaints(self.seed)


@dataclass(frozen=True)
class DataConfig:
    """Where the prepared clips are."""

    folder: str
    """A folder that `python -m latentsync_ray.preprocess` wrote; relative to the file that names it."""
    num_frames: int = 16
    """Frames of one sample."""
    synthetic: SyntheticConfig | None = None
    """Draw and prepare these clips if the folder does not exist."""

    def complaints(self) -> Iterator[Complaint]:
        """The rules that these values break."""
        if self.num_frames < 1:
            yield "num_frames", "must be at least 1", "raise it"
        if self.synthetic is not None and self.num_frames > self.synthetic.num_frames:
            rule = f"must not be above synthetic.num_frames ({self.synthetic.num_frames})"
            yield "num_frames", rule, "lower it or draw longer clips"


@dataclass(frozen=True)
class ComponentsConfig:
    """The frozen networks and the first weights; what begins with `.`, `/` or `~` is a path, all else a hub id."""

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
        yield from _seed_complaints(self.seed)
        if self.mixed_noise_alpha < 0 or not math.isfinite(self.mixed_noise_alpha):
            yield "mixed_noise_alpha", "must be finite and not negative", "1 is the official value"


@dataclass(frozen=True)
class PlateauConfig:
    """True when the smoothed metric has not got better by `min_delta` for `patience_steps`."""

    metric: str = "val/recon"
    """A validation metric, the lower the better."""
    patience_steps: int = 60
    """Steps without progress."""
    min_delta: float = 0.0
    """Relative improvement that counts as progress: 0.01 is one per cent of the best value so far."""
    smoothing: float = 0.0
    """Weight of the past in an exponential moving average, from 0 (none) to below 1."""

    def complaints(self) -> Iterator[Complaint]:
        """The rules that these values break."""
        yield from metric_complaints(self.metric, LOWER_IS_BETTER)
        if self.patience_steps < 1:
            yield "patience_steps", "must be at least 1", "raise it"
        if not 0 <= self.min_delta < 1:
            yield "min_delta", "must be at least 0 and below 1", "0.01 asks for one per cent"
        if not 0 <= self.smoothing < 1:
            yield "smoothing", "must be at least 0 and below 1", "0 switches it off"


@dataclass(frozen=True)
class BelowConfig:
    """True when the metric is below a value."""

    metric: str = "val/recon"
    """A validation metric, the lower the better."""
    value: float = 0.0
    """The threshold."""

    def complaints(self) -> Iterator[Complaint]:
        """The rules that these values break."""
        yield from metric_complaints(self.metric, LOWER_IS_BETTER)
        if not math.isfinite(self.value):
            yield "value", "must be finite", "give a number"


@dataclass(frozen=True)
class TransitionConfig:
    """When to leave stage one: conditions on the history of validation metrics, and bounds."""

    max_step: int
    """Stage one ends here at the latest."""
    min_step: int = 0
    """Stage one does not end before."""
    at_step: int | None = None
    """True from this step on; 0 leaves stage one out."""
    plateau: PlateauConfig | None = None
    """True when a metric has stopped improving."""
    below: BelowConfig | None = None
    """True when a metric is low enough."""
    combine: Literal["any", "all"] = "any"
    """Whether one of the conditions given suffices or all of them must hold."""

    @property
    def latest_step(self) -> int:
        """Stage one ends here at the latest."""
        decides = self.combine == "any" or (self.plateau is None and self.below is None)
        return self.at_step if self.at_step is not None and decides else self.max_step

    def complaints(self) -> Iterator[Complaint]:
        """The rules that these values break."""
        if self.max_step < 1:
            yield "max_step", "must be at least 1", "raise it"
        if not 0 <= self.min_step <= self.max_step:
            yield "min_step", f"must be from 0 to max_step ({self.max_step})", "lower it or raise max_step"
        if self.at_step is not None and not self.min_step <= self.at_step <= self.max_step:
            bounds = f"min_step ({self.min_step}) to max_step ({self.max_step})"
            yield "at_step", f"must be from {bounds}", "move it or the bounds"


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter 2019), with gradients clipped by their global norm."""

    lr: float = 1e-5
    """Learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and second moments."""
    eps: float = 1e-8
    """Added to the denominator."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Largest global norm of the gradients."""
    implementation: Literal["foreach", "for-loop", "fused"] = "foreach"
    """torch's implementation; their results differ in the last bits."""

    def complaints(self) -> Iterator[Complaint]:
        """The rules that these values break."""
        for name in ("lr", "eps", "max_grad_norm"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                yield name, "must be finite and above 0", "give a positive number"
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            yield "betas", "must be two values from 0 to below 1", "the usual ones are [0.9, 0.999]"
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            yield "weight_decay", "must be finite and not negative", "0 switches it off"


@dataclass(frozen=True)
class LRSchedulerConfig:
    """Learning rate over the stage's own steps, by diffusers' get_scheduler."""

    name: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "constant"
    """Shape of the schedule."""
    num_warmup_steps: int = 0
    """Steps of linear warm-up."""
    num_training_steps: int | None = None
    """Where `linear` and `cosine` reach 0."""

    def complaints(self) -> Iterator[Complaint]:
        """The rules that these values break."""
        if self.num_warmup_steps < 0:
            yield "num_warmup_steps", "must not be negative", "0 switches it off"
        if self.name in ("linear", "cosine") and (self.num_training_steps or 0) <= self.num_warmup_steps:
            rule = f"must be above num_warmup_steps ({self.num_warmup_steps}) for a {self.name} schedule"
            yield "num_training_steps", rule, "give the step at which the learning rate reaches 0"


@dataclass(frozen=True)
class StageConfig:
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
    gradient_checkpointing: bool = False
    """Computes activations again in the backward pass instead of keeping them: less memory, more time."""
    mixed_noise_alpha: float = 1.0
    """Share of the noise that is common to the frames of a clip (PYoCo, Ge et al. 2023); 0 for none."""
    ema_decay: float = 0.0
    """Decay of an exponential moving average of the trained weights; where it is above 0, the average is what is
    validated, exported and handed on to stage two."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """bfloat16 and float16 run the networks under autocast, float16 with a scaled loss."""
    compile: bool = False
    """Runs the UNet through torch.compile: a slow start, then faster steps on a GPU."""
    num_workers: int = 1
    """Processes that train one trial together (the world size)."""
    num_threads: int = 1
    """CPU threads of each process; the last bits of a sum depend on it."""
    report_every_steps: int = 20
    """Validation, checkpoint and decisions come at multiples of this many of the stage's steps."""

    def complaints(self) -> Iterator[Complaint]:
        """The rules that these values break."""
        counts = ("batch_size", "gradient_accumulation_steps", "num_workers", "num_threads", "report_every_steps")
        for name in counts:
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


@dataclass(frozen=True)
class SecondStageConfig(StageConfig):
    """Stage two, which has a fixed length."""

    num_steps: int = 100
    """Steps from the transition to the end of the trial."""

    def complaints(self) -> Iterator[Complaint]:
        """The rules that these values break."""
        yield from super().complaints()
        if self.num_steps < 1 or (self.report_every_steps >= 1 and self.num_steps % self.report_every_steps):
            rule = f"must be a positive multiple of report_every_steps ({self.report_every_steps})"
            yield "num_steps", rule, "move it to a report boundary"


@dataclass(frozen=True)
class Recipe:
    """A whole two-stage training."""

    data: DataConfig
    """The prepared clips."""
    components: ComponentsConfig
    """The frozen networks."""
    transition: TransitionConfig
    """When stage one ends."""
    first_stage: StageConfig
    """Stage one, from `first_stage.yaml`."""
    second_stage: SecondStageConfig
    """Stage two, from `second_stage.yaml`."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """The fixed validation."""
    divergence_factor: float | None = 10.0
    """A trial whose `val/objective` has grown to so many times its best is stopped; null lets it go on."""
    training: str = "latentsync_ray.latentsync.stage:LatentSyncTraining"
    """`module:class` of the two-stage training that takes the steps, a `learn.training.Training`."""
    seed: int = 0
    """Initial weights, samples, timesteps and noise are pure functions of it."""

    def complaints(self) -> Iterator[Complaint]:
        """The rules that these values break together."""
        every = self.first_stage.report_every_steps
        off_boundary = f"must be a multiple of first_stage.report_every_steps ({every})"
        for name in ("at_step", "min_step", "max_step"):
            step = getattr(self.transition, name)
            if every >= 1 and step is not None and step % every:
                yield f"transition.{name}", off_boundary, f"move it to {max(every, round(step / every) * every)}"
        plateau = self.transition.plateau
        if plateau is not None and every >= 1 and plateau.patience_steps % every:
            remedy = f"move it to {max(every, round(plateau.patience_steps / every) * every)}"
            yield "transition.plateau.patience_steps", off_boundary, remedy
        if self.divergence_factor is not None and not self.divergence_factor > 1:
            yield "divergence_factor", "must be above 1", "10 is usual, null switches it off"
        if self.data.synthetic is not None and self.components.audio_encoder is None:
            yield "components.audio_encoder", "must be given, since data.synthetic is", "name a folder or hub id"
        users = {
            "first_stage.loss": self.first_stage.loss,
            "second_stage.loss": self.second_stage.loss,
            "validation.objective": self.validation.objective,
        }
        for term in LOSS_TERMS:
            component = NEEDED_COMPONENTS.get(f"val/{term}")
            for user, weights in users.items():
                if getattr(weights, term) > 0 and component and getattr(self.components, component) is None:
                    rule = f"must be given, since {user}.{term} is above 0"
                    yield f"components.{component}", rule, f"name a folder or hub id, or set {user}.{term}=0"
        for name in ("plateau", "below"):
            condition = getattr(self.transition, name)
            component = NEEDED_COMPONENTS.get(condition.metric) if condition else None
            if component and getattr(self.components, component) is None:
                yield f"transition.{name}.metric", f"needs components.{component}", "give it or choose another metric"
        yield from _seed_complaints(self.seed)


def metric_complaints(metric: str, known: tuple[str, ...] = VALIDATION_METRICS) -> Iterator[Complaint]:
    """The rule that a metric's name breaks, if it is none of those known."""
    if metric not in known:
        rule = "must be a validation metric" + (", the lower the better" if known == LOWER_IS_BETTER else "")
        yield "metric", rule, "choose one of " + ", ".join(known)


def _seed_complaints(seed: int) -> Iterator[Complaint]:
    if seed < 0:
        yield "seed", "must not be negative", "0 will do"
