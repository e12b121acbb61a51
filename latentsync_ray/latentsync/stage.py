"""LatentSync's two stages on prepared clips; `training.LatentSync` gives them to the framework."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from latentsync_ray.config.errors import UserError
from latentsync_ray.latentsync.config import (
    LOSS_TERMS,
    ComponentsConfig,
    LatentSyncStage,
    LossConfig,
    ValidationConfig,
)
from latentsync_ray.latentsync.diffusion import build_noise_scheduler, mixed_noise, one_step_x0
from latentsync_ray.latentsync.losses import LPIPS, TREPALoss, recon_loss, sync_loss
from latentsync_ray.latentsync.models.autoencoder import decode_latents, load_autoencoder
from latentsync_ray.latentsync.models.interop import read_weights
from latentsync_ray.latentsync.models.pretrained import load_pretrained
from latentsync_ray.latentsync.models.unet import UNet3DConditionModel, select_trainable, warm_start
from latentsync_ray.latentsync.optimizer import (
    build_optimizer,
    learning_rate,
    load_moments,
    moments,
    set_learning_rate,
)
from latentsync_ray.latentsync.syncnet.model import StableSyncNet

Sample = Mapping[str, Any]


class Samples(Protocol):
    """Where training and validation samples come from: pure functions of their arguments."""

    def train_sample(self, seed: int, global_step: int, index: int, num_frames: int) -> Sample:
        """One sample of the global batch."""
        ...

    def validation_samples(self, num_samples: int, num_frames: int, seed: int) -> Sequence[Sample]:
        """The fixed validation set."""
        ...


@dataclass(frozen=True)
class StagesSetup:
    """What stays the same for all segments that a worker trains."""

    samples: Samples
    """Prepared clips."""
    components: ComponentsConfig
    """The frozen networks."""
    validation: ValidationConfig
    """The fixed validation."""
    num_frames: int
    """Frames of a sample."""
    seed: int
    """Of the initial weights, samples, timesteps and noise."""
    device: torch.device
    """Where this worker computes."""
    rank: int = 0
    """This worker's number."""
    world_size: int = 1
    """Number of workers."""


NUM_TRAIN_TIMESTEPS = 1000
SCALER_STATE = ("scale", "_growth_tracker")
"""What of a GradScaler changes as it goes."""


class Stages:
    """LatentSync's two stages: the reconstruction loss alone, then all losses on decoded frames.

    The loss terms and their weights are those of LatentSync (Li et al. 2024, section 3; `configs/unet/stage*.yaml`
    of its repository): noise prediction error, and SyncNet, LPIPS and TREPA losses on decoded one-step predictions.
    """

    unet: UNet3DConditionModel
    optimizer: torch.optim.AdamW

    def __init__(self, setup: StagesSetup):
        self.setup = setup
        self.noise_scheduler = build_noise_scheduler()
        components, device = setup.components, setup.device
        self.vae = _frozen(load_autoencoder(components.vae), device)
        self.syncnet = _frozen_from(partial(load_pretrained, StableSyncNet), components.syncnet, device)
        self.lpips = _frozen_from(partial(load_pretrained, LPIPS), components.lpips, device)
        self.trepa = _frozen_from(TREPALoss.from_pretrained, components.video_encoder, device)
        for convolutional in (self.vae, self.lpips):
            if convolutional is not None:
                convolutional.to(memory_format=torch.channels_last)  # a quarter faster at 256 pixels
        self._reader = ThreadPoolExecutor(1, "reader")
        self._ahead: tuple[int, Future[list[Sample]]] | None = None
        validation = setup.validation
        self.validation_samples = setup.samples.validation_samples(
            validation.num_samples, setup.num_frames, validation.seed
        )

    def build(
        self, stage: str, config: LatentSyncStage, state: Mapping[str, Tensor] | None, state_stage: str
    ) -> None:
        """Builds UNet, optimizer and LR schedule; see `Training.build`."""
        self.config = config

        # New weights (all of them at step 0, the motion modules later) depend on the seed and the stage alone.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_seed(self.setup.seed, "initial weights", stage))
            self.unet = UNet3DConditionModel(**config.model)
        start = self.setup.components.unet
        if state is None and start is not None:
            weights = read_weights(start)
        else:
            weights = {name[len("model.") :]: t for name, t in (state or {}).items() if name.startswith("model.")}
        resumed = state if stage == state_stage else None
        if resumed is not None:
            self.unet.load_state_dict(weights)
        elif weights:
            warm_start(self.unet, weights)
        self.unet.to(self.setup.device).train()

        self.trainable = select_trainable(self.unet, config.trainable_modules)
        parameters = [parameter for _, parameter in self.trainable]
        self.ema = EMAModel(parameters, decay=config.ema_decay) if config.ema_decay > 0 else None
        self.optimizer = build_optimizer(parameters, config.optimizer)
        self.scaler = torch.amp.GradScaler(self.setup.device.type, enabled=config.dtype == "float16")
        if resumed is not None:
            self._resume(resumed)
        for network in (self.unet, self.vae):
            if config.gradient_checkpointing:
                network.enable_gradient_checkpointing()
            else:
                network.disable_gradient_checkpointing()
        self.learning_rate = learning_rate(config.optimizer, config.lr_scheduler)

        self.network: torch.nn.Module = self.unet
        if config.compile:
            self.network = cast(torch.nn.Module, torch.compile(self.unet))
        if self.setup.world_size > 1:
            # Looking for unused parameters keeps the gradient buckets as they are at first; else the second step
            # sums in another order than the first, and a restart would show in the last bits.
            self.network = DistributedDataParallel(self.network, find_unused_parameters=True)

    def step(self, global_step: int, stage_step: int) -> dict[str, float]:
        """One step of AdamW on this rank's share of the global batch; see `Training.step`.

        In float16 a step whose gradients overflow is taken again with a smaller loss scale, so that a skipped step
        advances neither global_step nor the LR schedule.

        Raises:
            FloatingPointError: A loss term or the gradient norm is not finite; names the step and which.
        """
        config = self.config
        set_learning_rate(self.optimizer, self.learning_rate(stage_step))
        overflown = True
        while overflown:
            losses = self._backward(global_step)
            self.scaler.unscale_(self.optimizer)
            parameters = [parameter for _, parameter in self.trainable]
            grad_norm = torch.nn.utils.clip_grad_norm_(parameters, config.optimizer.max_grad_norm)
            overflown = not torch.isfinite(grad_norm)
            if overflown and not (self.scaler.is_enabled() and self.scaler.get_scale() > 1):
                raise FloatingPointError(f"step {global_step + 1}: the gradient norm is {float(grad_norm)}")
            self.scaler.step(self.optimizer)  # skips the optimizer if overflown
            self.scaler.update()
        if self.ema is not None:
            self.ema.optimization_step = stage_step
            self.ema.step(parameters)

        metrics = _mean_over_ranks(losses, self.setup.world_size)
        metrics["grad_norm"] = float(grad_norm)
        metrics["lr"] = float(self.optimizer.param_groups[0]["lr"])
        return metrics

    def _backward(self, global_step: int) -> dict[str, Tensor]:
        """Gradients of this rank's share, micro-batch after micro-batch. Returns the losses."""
        setup, config = self.setup, self.config
        share = config.batch_size // setup.world_size
        size = share // config.gradient_accumulation_steps
        self.optimizer.zero_grad(set_to_none=True)
        losses: dict[str, Tensor] = {}
        own = self._samples(global_step)
        for first in range(setup.rank * share, (setup.rank + 1) * share, size):
            indices = range(first, first + size)
            samples = own[first - setup.rank * share :][:size]
            draws = [
                _draw(setup.seed, "train", global_step, index, sample)
                for index, sample in zip(indices, samples, strict=True)
            ]
            timesteps, noise = self._noise(draws, config.mixed_noise_alpha)
            batch = _collate(samples, setup.device)

            with self._synchronized(first + size == (setup.rank + 1) * share):
                terms = self._loss_terms(self.network, batch, timesteps, noise, config.loss)
                for term, value in terms.items():
                    if not torch.isfinite(value):
                        raise FloatingPointError(
                            f"step {global_step + 1}: the {term} loss is {float(value.detach())}"
                        )
                loss = sum(getattr(config.loss, term) * value for term, value in terms.items() if term in LOSS_TERMS)
                assert isinstance(loss, Tensor)
                self.scaler.scale(loss / config.gradient_accumulation_steps).backward()  # type: ignore[no-untyped-call]
            for name, value in {"loss": loss, **terms}.items():
                losses[name] = losses.get(name, 0) + value.detach() / config.gradient_accumulation_steps
        return losses

    def _samples(self, global_step: int) -> list[Sample]:
        """This rank's share of a step's samples; those of the next step are read, and files checked, meanwhile."""
        ahead, setup = self._ahead, self.setup
        share = self.config.batch_size // setup.world_size

        def read(step: int) -> list[Sample]:
            indices = range(setup.rank * share, (setup.rank + 1) * share)
            return [setup.samples.train_sample(setup.seed, step, index, setup.num_frames) for index in indices]

        self._ahead = global_step + 1, self._reader.submit(read, global_step + 1)
        if ahead is not None and ahead[0] == global_step:
            samples = ahead[1].result()
            if len(samples) == share:
                return samples
        return read(global_step)

    def _synchronized(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """Ranks exchange gradients in the last micro-batch's backward pass alone."""
        if isinstance(self.network, DistributedDataParallel) and not is_last:
            return cast(contextlib.AbstractContextManager[None], self.network.no_sync())
        return contextlib.nullcontext()

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Every loss term at fixed timesteps and noise on held-out clips; see `Training.validate`."""
        setup = self.setup
        names = [term for term in LOSS_TERMS if self._can_compute(term)]
        everything = LossConfig(**{term: float(term in names) for term in LOSS_TERMS})
        totals: dict[str, Tensor] = {}
        pairs = [
            (index, timestep)
            for index in range(setup.rank, len(self.validation_samples), setup.world_size)
            for timestep in setup.validation.timesteps
        ]
        with self._evaluating():
            for start in range(0, len(pairs), setup.validation.batch_size):
                chunk = pairs[start : start + setup.validation.batch_size]
                samples = [self.validation_samples[index] for index, _ in chunk]
                draws = [
                    _draw(setup.validation.seed, "validation", timestep, index, sample)
                    for (index, timestep), sample in zip(chunk, samples, strict=True)
                ]
                timesteps, noise = self._noise(draws, setup.validation.mixed_noise_alpha)
                batch = _collate(samples, setup.device)
                for term, value in self._loss_terms(self.unet, batch, timesteps, noise, everything).items():
                    totals[term] = totals.get(term, torch.zeros((), device=setup.device)) + value * len(chunk)
        if not totals:  # more ranks than samples
            measured = names if self.syncnet is None else [*names, "sync_confidence"]
            totals = {term: torch.zeros((), device=setup.device) for term in measured}
        num_pairs = len(self.validation_samples) * len(setup.validation.timesteps)
        means = _mean_over_ranks(totals, setup.world_size, divide_by=num_pairs)
        return {f"val/{term}": value for term, value in means.items()}

    @torch.no_grad()
    def preview(self) -> Tensor:
        """First, middle and last frame of the first validation sample: masked input, generated, ground truth."""
        sample, timestep = self.validation_samples[0], self.setup.validation.timesteps[0]
        draw = _draw(self.setup.validation.seed, "validation", timestep, 0, sample)
        timesteps, noise = self._noise([draw], self.setup.validation.mixed_noise_alpha)
        batch = _collate([sample], self.setup.device)
        with self._evaluating(), self._autocast():
            pred_latents, _ = self._predict(self.unet, batch, timesteps, noise)
            generated = decode_video(self.vae, pred_latents).float()
        truth = batch["frames"] / 127.5 - 1
        masks = F.interpolate(batch["masks"], size=truth.shape[2:])
        columns = torch.cat([truth * masks, generated, truth], dim=4)[0]  # (3, F, H, 3 * W)
        rows = columns[:, [0, columns.shape[1] // 2, -1]].permute(1, 2, 3, 0).flatten(0, 1)
        return rows.add(1).mul(127.5).round().clamp(0, 255).to("cpu", torch.uint8)

    def state(self) -> dict[str, Tensor]:
        """Weights by name, and the optimizer's moments by parameter name; see `Training.state`.

        With an average, `model.*` is the average, and `trained.*` what goes on being trained.
        """
        tensors = {f"model.{name}": tensor for name, tensor in self.unet.state_dict().items()}
        if self.ema is not None:
            tensors |= {f"trained.{name}": parameter for name, parameter in self.trainable}
            for (name, _), average in zip(self.trainable, self.ema.shadow_params, strict=True):
                tensors[f"model.{name}"] = average
        tensors |= dict(moments(self.optimizer, self.trainable))
        if self.scaler.is_enabled():
            values = self.scaler.state_dict()
            tensors |= {f"scaler.{name}": torch.tensor(values[name]) for name in SCALER_STATE}
        return {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}

    @torch.no_grad()
    def _resume(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a state of the same stage, whose `model.*` is in the UNet already."""
        for name, parameter in self.trainable:
            if f"trained.{name}" in state:  # then `model.*` is their average
                parameter.copy_(state[f"trained.{name}"])
        load_moments(self.optimizer, self.trainable, state, self.config.optimizer)
        if self.scaler.is_enabled():
            values = {name: state[f"scaler.{name}"].item() for name in SCALER_STATE}
            self.scaler.load_state_dict(self.scaler.state_dict() | values)

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """The UNet in eval mode, with the average of its weights if one is kept."""
        parameters = [parameter for _, parameter in self.trainable]
        self.unet.eval()
        if self.ema is not None:
            self.ema.store(parameters)
            self.ema.copy_to(parameters)
        try:
            yield
        finally:
            if self.ema is not None:
                self.ema.restore(parameters)
            self.unet.train()

    def _can_compute(self, term: str) -> bool:
        needed = {"sync": self.syncnet, "lpips": self.lpips, "trepa": self.trepa}
        return term not in needed or needed[term] is not None

    def _noise(self, draws: Sequence[tuple[int, Tensor, Tensor]], alpha: float) -> tuple[Tensor, Tensor]:
        """Timesteps (B,) and noise (B, C, F, h, w) from the samples' own draws."""
        timesteps, shared, independent = zip(*draws, strict=True)
        noise = torch.stack(independent)
        if alpha > 0:
            noise = mixed_noise(torch.stack(shared), noise, alpha)
        return torch.tensor(timesteps, device=self.setup.device), noise.to(self.setup.device)

    def _loss_terms(
        self,
        network: Callable[..., Any],
        batch: Mapping[str, Tensor],
        timesteps: Tensor,
        noise: Tensor,
        weights: LossConfig,
    ) -> dict[str, Tensor]:
        """The loss terms with a positive weight, and the sync confidence where SyncNet runs."""
        with self._autocast():
            pred_latents, pred_noise = self._predict(network, batch, timesteps, noise)
        terms = {}
        if weights.recon > 0:
            terms["recon"] = recon_loss(pred_noise, noise)
        if max(weights.sync, weights.lpips, weights.trepa) <= 0:
            return terms

        # Pixel terms see the frames that a single denoising step predicts. What trials are compared by is measured in
        # float32: bfloat16 moves a sync loss by more than 1 %.
        with self._autocast() if self.unet.training else contextlib.nullcontext():
            pixels, frames = decode_video(self.vae, pred_latents), batch["frames"] / 127.5 - 1
            if weights.sync > 0:
                assert self.syncnet is not None
                measure: Any = partial(checkpoint, sync_loss, use_reentrant=False)
                measure = measure if self.config.gradient_checkpointing else sync_loss
                terms["sync"], terms["sync_confidence"] = measure(self.syncnet, pixels, batch["mel"])
            if weights.lpips > 0:
                assert self.lpips is not None
                terms["lpips"] = self.lpips(_lower_half(pixels), _lower_half(frames)).mean()
            if weights.trepa > 0:
                assert self.trepa is not None
                terms["trepa"] = self.trepa(pixels, frames)
        return terms

    def _predict(
        self, network: Callable[..., Any], batch: Mapping[str, Tensor], timesteps: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Latents (B, C, F, h, w) that a single denoising step predicts, and the predicted noise, both float32."""
        # LatentSync's 13 input channels: noisy latents 4, mask 1, masked latents 4, reference latents 4.
        noisy = self.noise_scheduler.add_noise(batch["latents"], noise, timesteps)
        sample = torch.cat([noisy, batch["masks"], batch["masked_latents"], batch["ref_latents"]], dim=1)
        pred_noise = network(sample, timesteps, batch["audio_features"]).sample.float()
        return one_step_x0(self.noise_scheduler, pred_noise, timesteps, noisy), pred_noise

    def _autocast(self) -> torch.autocast:
        dtype = getattr(torch, self.config.dtype)
        return torch.autocast(self.setup.device.type, dtype, enabled=dtype != torch.float32)


def decode_video(vae: torch.nn.Module, latents: Tensor) -> Tensor:
    """Decodes latents (B, 4, F, h, w) to pixels (B, 3, F, H, W), about [-1, 1]."""
    batch, _, num_frames = latents.shape[:3]
    pixels = decode_latents(vae, latents.transpose(1, 2).flatten(0, 1))
    return pixels.reshape(batch, num_frames, *pixels.shape[1:]).transpose(1, 2)


def _lower_half(pixels: Tensor) -> Tensor:
    """Images (B * F, 3, H / 2, W) of the lower half of videos (B, 3, F, H, W)."""
    return pixels[:, :, :, pixels.shape[3] // 2 :].transpose(1, 2).flatten(0, 1)


def _frozen(module: torch.nn.Module, device: torch.device) -> Any:
    return module.to(device).eval().requires_grad_(False)


def _frozen_from(load: Callable[[str], torch.nn.Module], source: str | None, device: torch.device) -> Any:
    """A frozen network from a folder or hub id, or None if the recipe names none."""
    return None if source is None else _frozen(load(source), device)


def _seed(*key: object) -> int:
    """63 bits that depend on all parts of the key."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") >> 1


def _draw(seed: int, purpose: str, step: int, index: int, sample: Sample) -> tuple[int, Tensor, Tensor]:
    """A sample's timestep and its shared and independent noise (C, F, h, w).

    In validation the step is the timestep. The draw is made on the CPU, so that it is the same on every device.
    """
    generator = torch.Generator().manual_seed(_seed(seed, purpose, step, index))
    shape = sample["latents"].shape
    drawn = int(torch.randint(NUM_TRAIN_TIMESTEPS, (), generator=generator))
    shared, independent = torch.randn(2, *shape, generator=generator)
    return step if purpose == "validation" else drawn, shared, independent


def _collate(samples: Sequence[Sample], device: torch.device) -> dict[str, Tensor]:
    names = [name for name, value in samples[0].items() if isinstance(value, Tensor)]
    return {name: torch.stack([sample[name] for sample in samples]).to(device) for name in names}


def _mean_over_ranks(values: Mapping[str, Tensor], world_size: int, divide_by: int | None = None) -> dict[str, float]:
    """Mean over the ranks; or, where `divide_by` is given, their sum divided by it."""
    names = sorted(values)
    stacked = torch.stack([values[name].float() for name in names])
    if world_size > 1:
        dist.all_reduce(stacked)
    stacked = stacked / (divide_by or world_size)
    return dict(zip(names, stacked.tolist(), strict=True))


def check_stage(config: LatentSyncStage, start: str | None) -> None:
    """Builds a stage's UNet without memory, to find out whether that can be done.

    Args:
        config: The stage's settings.
        start: Weights that it is to start from (`components.unet`), if it is the one to start.

    Raises:
        TypeError, ValueError, LookupError, ArithmeticError, RuntimeError: It cannot.
        UserError: The weights do not fit it.
    """
    with torch.device("meta"):
        unet = UNet3DConditionModel(**config.model)
    select_trainable(unet, config.trainable_modules)
    if start is not None:
        weights = read_weights(start, "meta")
        try:
            warm_start(unet, weights)
        except ValueError as error:
            raise UserError(
                f"components.unet: {start} must fit the UNet of the stage that starts: {error}; name a checkpoint"
                " of such a UNet, or change `model` in the stage's file"
            ) from None
