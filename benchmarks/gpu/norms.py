"""A prototype: networks in channels-last memory, with group norm and SiLU as one operator, bfloat16 in and out.

On a GPU the operator is `triton_norm`'s kernels; elsewhere it is composed of torch's operators.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from latentsync_ray.latentsync.models import unet as unet_module
from latentsync_ray.latentsync.models import unet_blocks


@torch.library.custom_op("latentsync_ray_bench::norm_act", mutates_args=(), device_types="cpu")
def norm_act(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Group norm of contiguous (S, R, C), and SiLU where asked for; also mean and 1 / deviation (S, G), float32."""
    values = _grouped(x, groups)
    means = values.mean((1, 3))
    rstds = (values.var((1, 3), correction=0) + eps).rsqrt()
    y = _affine(values, means, rstds, weight, bias)[0]
    return (F.silu(y) if silu else y).to(x.dtype), means, rstds


@torch.library.custom_op("latentsync_ray_bench::norm_act_backward", mutates_args=(), device_types="cpu")
def norm_act_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, means: Tensor, rstds: Tensor, groups: int, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `norm_act` for its first three arguments."""
    values = _grouped(x, groups)
    y, normal = _affine(values, means, rstds, weight, bias)
    gradient = dy.to(y.dtype)
    if silu:
        gate = y.sigmoid()
        gradient = gradient * gate * (1 + y * (1 - gate))
    of_weight, of_bias = (gradient * normal).sum((0, 1)), gradient.sum((0, 1))
    scaled, normal = _grouped(gradient * weight, groups), _grouped(normal, groups)
    along, level = ((scaled * part).mean((1, 3), keepdim=True) for part in (normal, torch.ones_like(normal)))
    dx = (scaled - level - normal * along) * rstds[:, None, :, None]
    return dx.flatten(2).to(x.dtype), of_weight.to(weight.dtype), of_bias.to(bias.dtype)


def _grouped(x: Tensor, groups: int) -> Tensor:
    """(S, R, G, C / G), in float32 at least."""
    return x.unflatten(2, (groups, -1)).to(torch.promote_types(x.dtype, torch.float32))


def _affine(values: Tensor, means: Tensor, rstds: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    normal = ((values - means[:, None, :, None]) * rstds[:, None, :, None]).flatten(2)
    return normal * weight + bias, normal


@norm_act.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> Any:
    moments = [x.new_empty(len(x), groups, dtype=torch.promote_types(x.dtype, torch.float32)) for _ in range(2)]
    return torch.empty_like(x), *moments


@norm_act_backward.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, *_: Any) -> Any:
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)


@norm_act.register_kernel("cuda")
def _(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> Any:
    from benchmarks.gpu import triton_norm  # its library is not there on every machine

    return triton_norm.forward(x, weight, bias, groups, eps, silu)


@norm_act_backward.register_kernel("cuda")
def _(dy: Tensor, x: Tensor, *rest: Any) -> Any:
    from benchmarks.gpu import triton_norm

    return triton_norm.backward(dy.contiguous(), x, *rest)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, ctx.groups, _, ctx.silu = inputs
    ctx.save_for_backward(x, weight, bias, *output[1:])


def _gradients(ctx: Any, dy: Tensor, *_: Any) -> tuple[Any, ...]:
    return *norm_act_backward(dy.contiguous(), *ctx.saved_tensors, ctx.groups, ctx.silu), None, None, None


norm_act.register_autograd(_gradients, setup_context=_save)


def frames_norm(states: Tensor, norm: nn.GroupNorm, silu: bool, num_samples: int) -> Tensor:
    """Group norm over the frames of each of `num_samples` samples, in autocast's type and channels-last memory.

    Args:
        states: (B * F, C, H, W).
        norm: The norm, with weights.
        silu: Whether SiLU follows.
        num_samples: B; or B * F for a norm of each frame.
    """
    kind = states.device.type
    if torch.is_autocast_enabled(kind):
        states = states.to(torch.get_autocast_dtype(kind))
    rows = states.permute(0, 2, 3, 1).contiguous().view(num_samples, -1, states.shape[1])
    normalised = norm_act(rows, norm.weight, norm.bias, norm.num_groups, norm.eps, silu)[0]
    frames, channels, height, width = states.shape
    return normalised.view(frames, height, width, channels).permute(0, 3, 1, 2)


class FrameNorm(nn.GroupNorm):
    """A group norm of each frame by itself, and SiLU where asked for."""

    silu = False

    def forward(self, states: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape; other shapes go torch's way."""
        if states.ndim != 4:
            return super().forward(states)
        return frames_norm(states, self, self.silu, len(states))


def turn_channels_last(network: nn.Module) -> None:
    """`network.to(memory_format=torch.channels_last)`, for tensors without memory as well."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


@contextlib.contextmanager
def fused_norms(*networks: nn.Module) -> Iterator[None]:
    """Has networks run in channels-last memory with the operator, while the context is entered.

    Args:
        networks: The UNet, and the autoencoder where one is used.
    """
    with contextlib.ExitStack() as stack:
        for module in (unet_module, unet_blocks):
            stack.enter_context(patch.object(module, "group_norm_silu_conv", _norm_silu_conv))
        for network in networks:
            turn_channels_last(network)
            for module in list(network.modules()):
                if type(module) is nn.GroupNorm:
                    module.__class__ = FrameNorm
                    stack.callback(setattr, module, "__class__", nn.GroupNorm)
                if isinstance(module, ResnetBlock2D):
                    stack.enter_context(patch.object(module, "nonlinearity", nn.Identity()))
                    module.norm1.silu = module.norm2.silu = True  # type: ignore[assignment]
                if hasattr(module, "conv_norm_out") and hasattr(module, "conv_act"):
                    stack.enter_context(patch.object(module, "conv_act", nn.Identity()))
                    module.conv_norm_out.silu = True
        first = next(module for module in networks[0].modules() if isinstance(module, nn.Conv2d))
        hook = first.register_forward_pre_hook(
            lambda _, inputs: (inputs[0].contiguous(memory_format=torch.channels_last),)
        )
        stack.callback(hook.remove)
        yield


def _norm_silu_conv(states: Tensor, norm: nn.GroupNorm, conv: nn.Conv2d, batch_size: int) -> Tensor:
    return conv(frames_norm(states, norm, True, batch_size))
