"""Full sampling against denoisers whose result is known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from latentsync_ray.latentsync.diffusion import build_noise_scheduler
from latentsync_ray.latentsync.sampling import sample_latents

X0 = torch.randn(1, 4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
BATCH = {
    "masks": torch.ones(1, 1, 3, 5, 5),
    "masked_latents": torch.zeros(1, 4, 3, 5, 5),
    "ref_latents": torch.zeros(1, 4, 3, 5, 5),
    "audio_features": torch.ones(1, 3, 2, 6),
}


def knows(x0: Tensor, without_sound: Tensor | None = None):
    """A denoiser that sees exactly the noise upon x0, or upon another picture if it is given no sound."""
    alphas_cumprod = build_noise_scheduler().alphas_cumprod

    def unet(sample: Tensor, timesteps: Tensor, audio: Tensor) -> SimpleNamespace:
        assert sample.shape[1] == 13
        alpha = alphas_cumprod[timesteps].view(-1, 1, 1, 1, 1)
        target = x0 if audio.any() or without_sound is None else without_sound
        return SimpleNamespace(sample=(sample[:, :4] - alpha.sqrt() * target) / (1 - alpha).sqrt())

    return unet


@pytest.mark.parametrize("num_inference_steps", [20, 50])
@pytest.mark.parametrize("guidance_scale", [1.0, 1.5])
def test_a_perfect_denoiser_is_followed_to_the_end(num_inference_steps: int, guidance_scale: float) -> None:
    found = sample_latents(knows(X0), BATCH, num_inference_steps, guidance_scale)
    # The schedule ends at alpha 0.99915, so 3 % of the noise is left (set_alpha_to_one is false).
    torch.testing.assert_close(found, X0, atol=0.15, rtol=0)


def test_guidance_goes_beyond_the_prediction_without_sound() -> None:
    found = sample_latents(knows(X0, torch.zeros_like(X0)), BATCH, guidance_scale=2.0)
    torch.testing.assert_close(found, 2 * X0, atol=0.2, rtol=0)


def test_the_noise_is_the_seeds() -> None:
    calls: list[int] = []
    first, again, other = (
        sample_latents(knows(X0), BATCH, 2, 1.0, seed, progress=lambda: calls.append(1)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len(calls) == 6
