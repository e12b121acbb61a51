"""Frozen networks that hold their layers in autocast's type compute the same bits, and share all else."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import VideoMAEConfig, VideoMAEModel

from latentsync_ray.latentsync.losses import LPIPS, TREPALoss, sync_loss
from latentsync_ray.latentsync.models.autoencoder import decode_latents
from latentsync_ray.latentsync.networks import FrozenNetworks
from latentsync_ray.latentsync.syncnet.model import StableSyncNet

ENCODER = {"block_out_channels": [32, 256], "attn_blocks": [0, 1], "dropout": 0.0}


def make_networks() -> FrozenNetworks:
    """Small ones of the official kinds."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=[8, 16],
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
    )
    syncnet = StableSyncNet(
        audio_encoder={**ENCODER, "in_channels": 1, "downsample_factors": [[5, 4], [16, 4]]},
        visual_encoder={**ENCODER, "in_channels": 12, "downsample_factors": [[2, 4], [4, 4]]},
    )
    video = VideoMAEConfig(image_size=16, num_frames=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    lpips, trepa = LPIPS(channels=(8, 8)), TREPALoss(VideoMAEModel(video))
    for tap in range(2):
        lpips.get_parameter(f"lin{tap}.model.1.weight").data.uniform_()
    for network in (vae, syncnet, lpips, trepa):
        network.requires_grad_(False).eval()
    return FrozenNetworks(vae, syncnet, lpips, trepa)


def gradients(networks: FrozenNetworks, dtype: torch.dtype) -> list[Tensor]:
    """What each network makes of the same latents under autocast, and the gradient that it sends back to them."""
    torch.manual_seed(1)
    latents, mel, target = torch.randn(4, 4, 8, 8), torch.randn(1, 1, 80, 16), torch.rand(4, 3, 16, 16)
    results = []
    assert networks.syncnet and networks.lpips and networks.trepa
    for term in ("vae", "sync", "lpips", "trepa"):
        given = latents.clone().requires_grad_()
        with torch.autocast("cpu", dtype):
            pixels = decode_latents(networks.vae, given)
            video = pixels[None].transpose(1, 2)
            loss = {
                "vae": lambda: pixels.float().square().mean(),  # noqa: B023
                "sync": lambda: sync_loss(networks.syncnet, video, mel)[0],  # noqa: B023
                "lpips": lambda: networks.lpips(pixels, target).mean(),  # noqa: B023
                "trepa": lambda: networks.trepa(video, target[None].transpose(1, 2)),  # noqa: B023
            }[term]()
        loss.backward()
        assert given.grad is not None and given.grad.abs().sum() > 0, term
        results += [loss.detach(), given.grad]
    return results


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrowed_networks_compute_the_same_bits(dtype: torch.dtype) -> None:
    networks = make_networks()
    narrowed = networks.narrowed(dtype)
    for one, other in zip(gradients(networks, dtype), gradients(narrowed, dtype), strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)
    for name, network in vars(networks).items():
        copies = dict(getattr(narrowed, name).named_parameters())
        narrow = {key for key, parameter in copies.items() if parameter.dtype == dtype}
        assert narrow and all("norm" not in key.split(".")[-2] for key in narrow if "norm_out" not in key)
        for key, parameter in network.named_parameters():
            assert parameter.dtype == torch.float32
            assert (copies[key] is parameter) == (key not in narrow)
