"""Scaling and its inverse, for both classes of autoencoder, and the pictures that come back."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DModel

from latentsync_ray.config.errors import UserError
from latentsync_ray.latentsync.data.aligned import read_clip
from latentsync_ray.latentsync.data.media import to_pixels
from latentsync_ray.latentsync.models.autoencoder import (
    decode_latents,
    encode_latents,
    latent_factor,
    load_autoencoder,
    weights_sha256,
)


def tiny(**options) -> AutoencoderTiny:
    torch.manual_seed(0)
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1), num_decoder_blocks=(1, 1, 1, 1), **options,
    )  # fmt: skip


def kl(**options) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, norm_num_groups=4, latent_channels=4, **options,
    )  # fmt: skip


@pytest.mark.parametrize(("make", "factor"), [(tiny, 8), (kl, 4)])
def test_latents_are_scaled_and_decoded_as_the_config_says(tmp_path: Path, make, factor: int) -> None:
    make(scaling_factor=2.5, shift_factor=0.25).half().save_pretrained(tmp_path)
    vae = load_autoencoder(tmp_path)
    pixels = torch.rand(2, 3, 16, 32) * 2 - 1
    latents = encode_latents(vae, pixels)
    assert latents.dtype == torch.float32 and latents.shape == (2, 4, 16 // factor, 32 // factor)
    assert latent_factor(vae) == factor
    encoded = vae.encode(pixels)
    raw = encoded.latents if make is tiny else encoded.latent_dist.mean
    torch.testing.assert_close(latents, (raw - 0.25) * 2.5)
    torch.testing.assert_close(decode_latents(vae, latents), vae.decode(raw).sample, atol=1e-5, rtol=1e-4)
    assert encode_latents(vae, pixels).equal(latents)  # KL's mean, not a draw


def test_a_frozen_autoencoder_lets_gradients_through(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    vae = load_autoencoder(tmp_path)
    latents = torch.randn(1, 4, 2, 2, requires_grad=True)
    decode_latents(vae, latents).square().mean().backward()
    assert latents.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in vae.parameters())


def test_a_missing_shift_is_none(tmp_path: Path) -> None:
    kl(shift_factor=None, scaling_factor=1.0).save_pretrained(tmp_path)
    vae = load_autoencoder(tmp_path)
    pixels = torch.zeros(1, 3, 16, 16)
    assert encode_latents(vae, pixels).equal(vae.encode(pixels).latent_dist.mean)


def test_what_is_no_autoencoder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"vae {tmp_path / 'absent'}: cannot be loaded"):
        load_autoencoder(tmp_path / "absent")
    UNet2DModel(
        block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=4
    ).save_pretrained(tmp_path / "unet")
    with pytest.raises(UserError, match=r"must be an AutoencoderKL or AutoencoderTiny, is a UNet2DModel"):
        load_autoencoder(tmp_path / "unet")
    tiny().save_pretrained(tmp_path / "damaged")
    weights = next((tmp_path / "damaged").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged: cannot be loaded"):
        load_autoencoder(tmp_path / "damaged")


def test_weights_are_named_by_what_they_are(tmp_path: Path) -> None:
    vae = tiny()
    vae.save_pretrained(tmp_path)
    assert weights_sha256(load_autoencoder(tmp_path)) == weights_sha256(vae)
    with torch.no_grad():
        next(vae.parameters()).view(-1)[0] += 1e-6
    assert weights_sha256(load_autoencoder(tmp_path)) != weights_sha256(vae)


def test_real_pictures_come_back(shared: Path) -> None:
    vae = load_autoencoder(shared / "real" / "autoencoder")
    frames = read_clip(shared / "real" / "clips" / "demo2_00.mp4").frames[::25]
    pixels = to_pixels(torch.from_numpy(frames).permute(0, 3, 1, 2))
    with torch.inference_mode():
        latents = torch.cat([encode_latents(vae, picture) for picture in pixels.split(1)])
        back = torch.cat([decode_latents(vae, latent) for latent in latents.split(1)])
    psnr = 10 * np.log10(4 / (back - pixels).square().mean().item())
    assert psnr > 30
    assert 0.5 < latents.std() < 2  # scaled to about 1
