"""A training step counted: its operators run on tensors that have shapes and no memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.gpu.counter import Cost, Counter, total
from benchmarks.gpu.cuda_rules import cuda_rules
from benchmarks.gpu.norms import fused_norms, turn_channels_last
from benchmarks.gpu.rates import USUAL_BANDWIDTH
from benchmarks.gpu.sizes import WHISPER_STATES, Size
from latentsync_ray.latentsync.batches import Batch
from latentsync_ray.latentsync.config import LatentSyncRecipe, LatentSyncStage
from latentsync_ray.latentsync.data.media import num_mel_columns
from latentsync_ray.latentsync.losses import TREPALoss
from latentsync_ray.latentsync.models.unet import UNet3DConditionModel, select_trainable
from latentsync_ray.latentsync.networks import FrozenNetworks, narrow_frozen_layers
from latentsync_ray.latentsync.objective import Objective, weighted_sum

_PASSES = {"foreach": 18, "fused": 7}
"""AdamW's reads and writes of each trained float32 number, by torch's implementation."""
_CLIPPING_PASSES = 3
"""Norm of the gradients, then scaling them."""


@dataclass(frozen=True)
class Variant:
    """How a step is taken."""

    checkpointing: bool = False
    """Whether activations are computed again."""
    narrow: bool = True
    """Whether frozen weights are held in bfloat16."""
    fused_norms: bool = False
    """Whether the prototype of `norms` is taken."""
    implementation: str = "fused"
    """Of AdamW."""
    batch_size: int | None = None
    """Another one than the recipe's."""


@dataclass(frozen=True)
class CountedStep:
    """What a step takes."""

    costs: dict[tuple[str, str], Cost]
    """By phase and kind, without the optimizer."""
    kept_bytes: int
    """Kept for the backward pass, without parameters."""
    num_trained: int
    """Numbers that are trained."""
    optimizer_bytes: float
    """Clipping and AdamW."""

    @property
    def total(self) -> Cost:
        """Forward and backward pass."""
        return total(self.costs.values())

    @property
    def model_flops(self) -> float:
        """Without what checkpointing computes again."""
        return total(cost for (phase, _), cost in self.costs.items() if phase != "again").flops

    @property
    def seconds(self) -> float:
        """At usual rates, the optimizer included; a processor that is too slow for the GPU is not."""
        return self.total.seconds + self.optimizer_bytes / USUAL_BANDWIDTH


def count_step(size: Size, recipe: LatentSyncRecipe, stage: str, variant: Variant = Variant()) -> CountedStep:
    """Counts one step of a stage in bfloat16, as a GPU would take it."""
    config: LatentSyncStage = getattr(recipe, stage)
    config = replace(config, batch_size=variant.batch_size or config.batch_size)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with FakeTensorMode(allow_non_fake_inputs=True):
        networks, unet = _networks(size, variant), UNet3DConditionModel(**config.model).train()
        num_trained = sum(parameter.numel() for _, parameter in select_trainable(unet, config.trainable_modules))
        if variant.narrow:
            narrow_frozen_layers(unet, torch.bfloat16)
        if variant.checkpointing:
            unet.enable_gradient_checkpointing()
        networks.set_checkpointing(variant.checkpointing)
        objective = Objective(networks, torch.device("cpu"), torch.bfloat16, checkpointing=variant.checkpointing)
        batch = _batch(size, recipe, config)
        norms = fused_norms(unet, networks.vae) if variant.fused_norms else contextlib.nullcontext()
        # The memory of what is kept must not be given to others while it is told apart by its address.
        with cuda_rules(), norms, Counter() as counter, torch.autograd.graph.saved_tensors_hooks(keep, _unchanged):
            loss = weighted_sum(objective.terms(unet, batch, config.loss), config.loss)
            kept_bytes, counter.in_backward = sum(kept.values()), True
            loss.backward()
    passes = _PASSES[variant.implementation] + _CLIPPING_PASSES
    return CountedStep(dict(counter.costs), kept_bytes, num_trained, 4.0 * passes * num_trained)


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def _networks(size: Size, variant: Variant) -> FrozenNetworks:
    made: dict[str, Callable[[], nn.Module]] = size.networks()
    vae, syncnet, lpips, video = (
        made[name]().requires_grad_(False).eval() for name in ("vae", "syncnet", "lpips", "video_encoder")
    )
    for network in (vae, lpips):
        turn_channels_last(network)
    networks = FrozenNetworks(vae, syncnet, lpips, TREPALoss(video))  # type: ignore[arg-type]
    return networks.narrowed(torch.bfloat16) if variant.narrow else networks


def _batch(size: Size, recipe: LatentSyncRecipe, config: LatentSyncStage) -> Batch:
    frames, latent, samples = recipe.data.num_frames, size.latent_size, config.batch_size
    shape = (samples, 4, frames, latent, latent)
    width = config.model["cross_attention_dim"]
    inputs = {name: torch.randn(shape) for name in ("latents", "masked_latents", "ref_latents")}
    inputs |= {
        "masks": torch.randn(samples, 1, *shape[2:]),
        "audio_features": torch.randn(samples, frames, 10 * WHISPER_STATES, width),
        "mel": torch.randn(samples, 1, 80, num_mel_columns(frames)),
        "frames": torch.zeros(samples, 3, frames, size.resolution, size.resolution, dtype=torch.uint8),
    }
    return Batch(inputs, torch.zeros(samples, dtype=torch.long), torch.randn(shape))
