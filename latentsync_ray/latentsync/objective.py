"""The loss terms of a batch: noise prediction, and what the frames that a single step predicts look and sound like.

The terms and their weights are those of LatentSync (Li et al. 2024, section 3; `configs/unet/stage*.yaml` of its
repository): noise prediction error, and SyncNet, LPIPS and TREPA losses on decoded one-step predictions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from latentsync_ray.latentsync.batches import Batch
from latentsync_ray.latentsync.config import LOSS_TERMS, LossConfig
from latentsync_ray.latentsync.diffusion import build_noise_scheduler, one_step_x0
from latentsync_ray.latentsync.losses import recon_loss, sync_loss
from latentsync_ray.latentsync.models.autoencoder import decode_latents
from latentsync_ray.latentsync.networks import FrozenNetworks


@dataclass(frozen=True)
class Objective:
    """Computes the loss terms of batches."""

    networks: FrozenNetworks
    """What the pixel terms look through."""
    device: torch.device
    """Where it computes."""
    dtype: torch.dtype
    """Of autocast; float32 for none."""
    judging: bool = False
    """Whether trials are compared by the terms: then the pixel terms are measured in float32, since bfloat16 moves a
    sync loss by more than 1 %."""
    checkpointing: bool = False
    """Whether the sync loss computes its activations again in the backward pass."""
    noise_scheduler: DDIMScheduler = field(default_factory=build_noise_scheduler)
    """Adds the noise."""

    def terms(self, network: Callable[..., Any], batch: Batch, weights: LossConfig) -> dict[str, Tensor]:
        """The loss terms with a positive weight, and the sync confidence where SyncNet runs; scalars."""
        with self.autocast():
            prediction = self.predict(network, batch)
        return self._terms_of(*prediction, batch, weights)

    def terms_of_each(
        self, network: Callable[..., Any], batch: Batch, weights: LossConfig
    ) -> list[dict[str, Tensor]]:
        """As `terms`, of each sample by itself; the network sees them all at once."""
        with self.autocast():
            latents, noise = self.predict(network, batch)
        each = (slice(index, index + 1) for index in range(len(batch)))
        return [self._terms_of(latents[one], noise[one], batch[one], weights) for one in each]

    def _terms_of(
        self, pred_latents: Tensor, pred_noise: Tensor, batch: Batch, weights: LossConfig
    ) -> dict[str, Tensor]:
        networks, terms = self.networks, {}
        if weights.recon > 0:
            terms["recon"] = recon_loss(pred_noise, batch.noise)
        if not weights.of_pixels:
            return terms
        with self.autocast(enabled=not self.judging):
            pixels = decode_video(networks.vae, pred_latents)
            if weights.sync > 0:
                measure: Any = (
                    partial(checkpoint, sync_loss, use_reentrant=False) if self.checkpointing else sync_loss
                )
                terms["sync"], terms["sync_confidence"] = measure(networks.syncnet, pixels, batch.inputs["mel"])
            if max(weights.lpips, weights.trepa) > 0:
                frames = batch.inputs["frames"] / 127.5 - 1
            if weights.lpips > 0:
                assert networks.lpips is not None
                terms["lpips"] = networks.lpips(_lower_half(pixels), _lower_half(frames)).mean()
            if weights.trepa > 0:
                assert networks.trepa is not None
                terms["trepa"] = networks.trepa(pixels, frames)
        return terms

    def predict(self, network: Callable[..., Any], batch: Batch) -> tuple[Tensor, Tensor]:
        """Latents (B, C, F, h, w) that a single denoising step predicts, and the predicted noise, both float32."""
        inputs = batch.inputs
        # LatentSync's 13 input channels: noisy latents 4, mask 1, masked latents 4, reference latents 4.
        noisy = self.noise_scheduler.add_noise(inputs["latents"], batch.noise, batch.timesteps)
        sample = torch.cat([noisy, inputs["masks"], inputs["masked_latents"], inputs["ref_latents"]], dim=1)
        pred_noise = network(sample, batch.timesteps, inputs["audio_features"]).sample.float()
        return one_step_x0(self.noise_scheduler, pred_noise, batch.timesteps, noisy), pred_noise

    def autocast(self, enabled: bool = True) -> torch.autocast:
        """The context in which networks run."""
        return torch.autocast(self.device.type, self.dtype, enabled=enabled and self.dtype != torch.float32)


def weighted_sum(terms: dict[str, Tensor], weights: LossConfig) -> Tensor:
    """The loss: the sum of the terms by their weights."""
    loss = sum(getattr(weights, term) * value for term, value in terms.items() if term in LOSS_TERMS)
    assert isinstance(loss, Tensor)
    return loss


def decode_video(vae: torch.nn.Module, latents: Tensor) -> Tensor:
    """Decodes latents (B, 4, F, h, w) to pixels (B, 3, F, H, W), about [-1, 1]."""
    batch, _, num_frames = latents.shape[:3]
    pixels = decode_latents(vae, latents.transpose(1, 2).flatten(0, 1))
    return pixels.reshape(batch, num_frames, *pixels.shape[1:]).transpose(1, 2)


def _lower_half(pixels: Tensor) -> Tensor:
    """Images (B * F, 3, H / 2, W) of the lower half of videos (B, 3, F, H, W)."""
    return pixels[:, :, :, pixels.shape[3] // 2 :].transpose(1, 2).flatten(0, 1)
