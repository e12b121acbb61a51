"""A step like that of LatentSync's own trainer, with diffusers' UNet of the same widths on as many pictures.

Its repository (https://github.com/bytedance/LatentSync, scripts/train_unet.py) trains in float16 under autocast, with
GradScaler, gradient checkpointing and torch's default AdamW, and encodes three kinds of pictures in every step.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from benchmarks.gpu.sizes import WHISPER_STATES, prepared_recipe
from benchmarks.gpu.steps import Job
from latentsync_ray.latentsync.models.autoencoder import encode_latents, load_autoencoder


def official_step(job: Job, plain: bool) -> dict[str, Any]:
    """Seconds and memory of a stage-one step.

    Args:
        job: Sizes and device.
        plain: Without scaler, checkpointing, default AdamW and encodings: the network alone, in bfloat16.
    """
    torch.use_deterministic_algorithms(False)
    recipe = prepared_recipe(job.size, list(job.overrides), job.folder)
    stage, frames, latent = recipe.first_stage, recipe.data.num_frames, job.size.latent_size
    model, images = stage.model, stage.batch_size * frames
    cuda = job.device == "cuda"
    types = [name.replace("3D", "2D") for name in model["down_block_types"]]
    with torch.device(job.device):
        unet = UNet2DConditionModel(
            sample_size=latent,
            in_channels=13,
            block_out_channels=tuple(model["block_out_channels"]),
            layers_per_block=model["layers_per_block"],
            norm_num_groups=model["norm_num_groups"],
            attention_head_dim=model["attention_head_dim"],
            cross_attention_dim=model["cross_attention_dim"],
            down_block_types=types,
            up_block_types=[name.replace("3D", "2D") for name in model["up_block_types"]],
        ).train()
        x, target = torch.randn(images, 13, latent, latent), torch.randn(images, 4, latent, latent)
        audio = torch.randn(images, 10 * WHISPER_STATES, model["cross_attention_dim"])
        timesteps = torch.zeros(images, dtype=torch.long)
        pixels = torch.rand(images, 3, job.size.resolution, job.size.resolution) * 2 - 1
    dtype = torch.bfloat16 if plain else torch.float16
    vae = load_autoencoder(recipe.components.vae).to(job.device, dtype)
    if not plain:
        unet.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-5, fused=True if plain else None)
    scaler = torch.amp.GradScaler(job.device, enabled=not plain)

    def step() -> None:
        if not plain:
            with torch.no_grad():
                for _ in range(3):
                    encode_latents(vae, pixels.to(dtype))
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(job.device, dtype):
            predicted = unet(x, timesteps, audio).sample
            loss = torch.nn.functional.mse_loss(predicted.float(), target)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()

    for count in (max(1, job.hash_steps - 2), job.timed_steps):
        _wait(cuda)
        started = time.perf_counter()
        for _ in range(count):
            step()
        _wait(cuda)
    seconds = (time.perf_counter() - started) / job.timed_steps
    figures = {"seconds": seconds, "samples_per_second": stage.batch_size / seconds, "batch_size": stage.batch_size}
    return figures | ({"gib": torch.cuda.max_memory_allocated() / 2**30} if cuda else {})


def _wait(cuda: bool) -> None:
    if cuda:
        torch.cuda.synchronize()
