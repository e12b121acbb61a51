"""Full sampling: from noise to latents in many denoising steps, guided by the sound."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from latentsync_ray.latentsync.diffusion import build_noise_scheduler


@torch.no_grad()
def sample_latents(
    unet: Callable[..., Any],
    batch: Mapping[str, Tensor],
    num_inference_steps: int = 20,
    guidance_scale: float = 1.5,
    seed: int = 0,
    progress: Callable[[], object] = lambda: None,
) -> Tensor:
    """Denoises by DDIM (https://arxiv.org/abs/2010.02502) with classifier-free guidance.

    Steps, guidance and the one noise that all frames share are those of LatentSync's pipeline
    (latentsync/pipelines/lipsync_pipeline.py), where silence stands for "no sound given": audio features of 0.

    Args:
        unet: In evaluation mode.
        batch: masks (B, 1, F, h, w), masked_latents and ref_latents (B, C, F, h, w), audio_features (B, F, N, D).
        num_inference_steps: Denoising steps.
        guidance_scale: How far beyond the prediction without sound; 1 takes the one with sound as it is.
        seed: Of the noise, which is drawn on the CPU.
        progress: Called after each step.

    Returns:
        (B, C, F, h, w) float32.
    """
    scheduler = build_noise_scheduler()
    scheduler.set_timesteps(num_inference_steps)
    masked_latents, audio = batch["masked_latents"], batch["audio_features"]
    shape = (masked_latents.shape[0], masked_latents.shape[1], 1, *masked_latents.shape[3:])
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(masked_latents.device)
    latents: Tensor = noise.expand_as(masked_latents) * scheduler.init_noise_sigma
    conditions = [batch["masks"], masked_latents, batch["ref_latents"]]
    for timestep in scheduler.timesteps.tolist():
        sample = torch.cat([latents, *conditions], dim=1)
        timesteps = torch.full((len(sample),), timestep, device=sample.device)
        pred_noise = unet(sample, timesteps, audio).sample.float()
        if guidance_scale != 1:
            without = unet(sample, timesteps, torch.zeros_like(audio)).sample.float()
            pred_noise = without + guidance_scale * (pred_noise - without)
        latents = scheduler.step(pred_noise, timestep, latents).prev_sample
        progress()
    return latents
