"""The diffusion process against the reference, and its inverse."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from latentsync_ray.latentsync.diffusion import build_noise_scheduler, mixed_noise, one_step_x0


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Tensor]:
    return load_file(shared / "golden" / "functional.safetensors")


def test_official_noise_scheduler(golden: dict[str, Tensor], shared: Path) -> None:
    noise_scheduler = build_noise_scheduler()
    official = json.loads((shared / "golden" / "functional.json").read_text())["scheduler"]
    del official["skip_prk_steps"]  # of another scheduler class; DDIM ignores it
    assert {key: noise_scheduler.config[key] for key in official} == official
    assert torch.equal(noise_scheduler.alphas_cumprod, golden["scheduler.alphas_cumprod"])


def test_one_step_x0_is_the_reference(golden: dict[str, Tensor]) -> None:
    noise_scheduler = build_noise_scheduler()
    x0, noise, timesteps, x_t = (golden[f"one_step.{key}"] for key in ("x0", "noise", "timesteps", "x_t"))
    torch.testing.assert_close(noise_scheduler.add_noise(x0, noise, timesteps), x_t, rtol=1e-4, atol=1e-5)
    out = one_step_x0(noise_scheduler, golden["one_step.pred_noise"], timesteps, x_t)
    torch.testing.assert_close(out, golden["one_step.out"], rtol=1e-4, atol=1e-5)


@given(seed=st.integers(0, 2**32), timesteps=st.lists(st.integers(0, 999), min_size=1, max_size=4))
def test_one_step_x0_inverts_add_noise(seed: int, timesteps: list[int]) -> None:
    noise_scheduler = build_noise_scheduler()
    x0, noise = torch.randn(2, len(timesteps), 4, 2, 3, 3, generator=torch.Generator().manual_seed(seed))
    t = torch.tensor(timesteps)
    x_t = noise_scheduler.add_noise(x0, noise, t)
    # At t = 999 the signal is scaled by 0.068, so float32's rounding grows 15-fold.
    torch.testing.assert_close(one_step_x0(noise_scheduler, noise, t, x_t), x0, rtol=0, atol=2e-5)


def test_one_step_x0_is_float32_and_bears_gradient() -> None:
    pred_noise = torch.randn(2, 4, 2, 3, 3, dtype=torch.bfloat16, requires_grad=True)
    x0 = one_step_x0(build_noise_scheduler(), pred_noise, torch.tensor([0, 999]), torch.randn(2, 4, 2, 3, 3))
    x0.sum().backward()
    assert x0.dtype == torch.float32
    assert pred_noise.grad is not None
    assert (pred_noise.grad != 0).all()


def test_mixed_noise_is_the_reference(golden: dict[str, Tensor]) -> None:
    shared, independent = golden["noise.z_shared"], golden["noise.z_ind"]
    for alpha in (1, 2):
        expected = golden[f"noise.mixed_alpha_{alpha}"]
        torch.testing.assert_close(mixed_noise(shared, independent, alpha), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(mixed_noise(shared, independent, math.inf), golden["noise.not_mixed_from_z_shared"])
    assert torch.equal(mixed_noise(shared, independent, 0), independent)


@given(alpha=st.floats(0, 1e6))
def test_mixed_noise_keeps_the_variance(alpha: float) -> None:
    one, zero = torch.ones(1, 1, 2, 1, 1), torch.zeros(1, 1, 2, 1, 1)
    variance = mixed_noise(one, zero, alpha).square() + mixed_noise(zero, one, alpha).square()
    torch.testing.assert_close(variance, one)
