"""The frozen autoencoder between pixels and the latents in which the UNet works."""

import hashlib
from pathlib import Path
from typing import TypeAlias

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn

from latentsync_ray.config.errors import UserError
from latentsync_ray.latentsync.models.pretrained import load_pretrained

Autoencoder: TypeAlias = AutoencoderKL | AutoencoderTiny
_KINDS = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}


def load_autoencoder(source: str | Path) -> Autoencoder:
    """Loads a diffusers `AutoencoderKL` or `AutoencoderTiny`, whichever its config.json names.

    Args:
        source: a folder or a Hugging Face hub id, such as "stabilityai/sd-vae-ft-mse".

    Returns:
        The network, float32, frozen, in eval mode, on the CPU.

    Raises:
        UserError: if there is no such model, or it is of another class.
    """
    try:
        kind = AutoencoderKL.load_config(str(source)).get("_class_name")
        if kind not in _KINDS:
            raise UserError(f"vae {source}: must be an AutoencoderKL or AutoencoderTiny, is a {kind}; give another")
        vae: Autoencoder = load_pretrained(_KINDS[kind], source)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"vae {source}: cannot be loaded ({reason}); give a folder or hub id of a diffusers autoencoder"
        ) from error
    vae.float().requires_grad_(False).eval()
    return vae


def latent_factor(vae: Autoencoder) -> int:
    """Returns how many pixels of a row or column go into one latent."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def encode_latents(vae: Autoencoder, pixels: Tensor) -> Tensor:
    """Encodes pictures into scaled latents.

    `AutoencoderKL` gives the mean of its posterior, so that encoding is deterministic.

    Args:
        vae: from `load_autoencoder`.
        pixels: (N, 3, H, W) in [-1, 1].

    Returns:
        (N, C, h, w): (z - shift_factor) * scaling_factor, both from the network's own config.
    """
    return encode_posterior(vae, pixels)[0]


def encode_posterior(vae: Autoencoder, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
    """Encodes pictures into scaled latents, and what other latents could be drawn from.

    Args:
        vae: from `load_autoencoder`.
        pixels: (N, 3, H, W) in [-1, 1].

    Returns:
        latents: (N, C, h, w), as `encode_latents` gives them.
        posterior: (N, 2 * C, h, w), mean and log-variance of z before scaling; None if the network has none.
    """
    encoded = vae.encode(pixels)
    if isinstance(vae, AutoencoderTiny):
        mean, posterior = encoded.latents, None
    else:
        mean = encoded.latent_dist.mean
        posterior = torch.cat([mean, encoded.latent_dist.logvar], dim=1)
    shift, scale = latent_scaling(vae)
    scaled: Tensor = (mean - shift) * scale
    return scaled, posterior


def latent_scaling(vae: Autoencoder) -> tuple[float, float]:
    """Returns shift_factor and scaling_factor of a network's own config."""
    return vae.config.shift_factor or 0.0, vae.config.scaling_factor


def decode_latents(vae: Autoencoder, latents: Tensor) -> Tensor:
    """Decodes scaled latents (N, C, h, w) into pictures (N, 3, H, W), nearly in [-1, 1]; differentiable."""
    shift, scale = latent_scaling(vae)
    pixels: Tensor = vae.decode(latents / scale + shift).sample
    return pixels


def weights_sha256(network: nn.Module) -> str:
    """Returns a name for what a network computes: the SHA-256 of its state dict, in order of keys."""
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
