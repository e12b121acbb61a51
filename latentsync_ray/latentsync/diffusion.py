"""The diffusion process: the noise schedule, noise that frames share, and the one-step estimate of x0."""

import math

from diffusers import DDIMScheduler
from torch import Tensor


def build_noise_scheduler() -> DDIMScheduler:
    """Return LatentSync's noise scheduler (its `configs/scheduler_config.json`), Stable Diffusion's betas."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def mixed_noise(shared: Tensor, independent: Tensor, alpha: float) -> Tensor:
    """Mix one noise for all frames with one for each (PYoCo's mixed model, https://arxiv.org/abs/2305.10474).

    Args:
        shared: (B, C, F, h, w) standard-normal draws, of which frame 0 serves all frames.
        independent: (B, C, F, h, w) standard-normal draws.
        alpha: how much is shared: the parts have variances alpha^2 / (1 + alpha^2) and 1 / (1 + alpha^2). At 0
            nothing is shared; at `math.inf` everything, which is LatentSync without `use_mixed_noise`.

    Returns:
        (B, C, F, h, w) noise, standard normal in every element.
    """
    # Sine and cosine of this angle are the two standard deviations, infinite alpha included.
    angle = math.atan(alpha)
    return math.sin(angle) * shared[:, :, :1] + math.cos(angle) * independent


def one_step_x0(noise_scheduler: DDIMScheduler, pred_noise: Tensor, timesteps: Tensor, x_t: Tensor) -> Tensor:
    """Estimate clean latents from noisy ones in one step (DDIM, https://arxiv.org/abs/2010.02502, eq. 9).

    Unlike `noise_scheduler.step`, it takes a timestep for each sample and lets gradients through.

    Args:
        noise_scheduler: one that predicts the noise and does not clip (`build_noise_scheduler`).
        pred_noise: (B, C, F, h, w) the model's estimate of the noise in `x_t`, any float type.
        timesteps: (B,) int64 in [0, num_train_timesteps).
        x_t: (B, C, F, h, w) noisy latents.

    Returns:
        (B, C, F, h, w) float32 estimate of x0.
    """
    alphas_cumprod: Tensor = noise_scheduler.alphas_cumprod.to(x_t.device)
    alpha_prod_t = alphas_cumprod[timesteps].view(-1, 1, 1, 1, 1)
    return (x_t.float() - (1 - alpha_prod_t).sqrt() * pred_noise.float()) / alpha_prod_t.sqrt()
