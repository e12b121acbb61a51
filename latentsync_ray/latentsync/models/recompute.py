"""Activations that feed a layer with weights, keeping for the backward pass what they take in, not what they give.

What they do not keep is a third of what a UNet's training step would hold (LOG.md). Only elementwise operations and
norms are computed again, never a product. `torch.utils.checkpoint` could do the same, but costs a third of a
millisecond a call, which a small network feels.
"""

# mypy: disable-error-code="no-any-return, no-untyped-call, no-untyped-def, misc, override"
# (torch leaves autograd functions untyped)

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _GEGLULinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, projected: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(projected, weight)
        hidden_states, gate = projected.chunk(2, dim=-1)
        return F.linear(hidden_states * F.gelu(gate), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        projected, weight = ctx.saved_tensors
        hidden_states, gate = projected.chunk(2, dim=-1)
        activated = F.gelu(gate)
        rows = gradient.flatten(0, -2)
        of_weight = of_bias = None
        if ctx.needs_input_grad[1]:
            of_weight = (rows.t() @ (hidden_states * activated).flatten(0, -2)).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            of_bias = rows.sum(0).to(weight.dtype)
        of_product = (rows @ weight.to(rows.dtype)).view_as(gate)
        of_gate = torch.ops.aten.gelu_backward(of_product * hidden_states, gate)
        return torch.cat([of_product * activated, of_gate], dim=-1), of_weight, of_bias


class _GroupNormSiLUConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, states: Tensor, norm_weight, norm_bias, weight, bias, batch_size: int, num_groups: int, eps: float
    ):
        ctx.save_for_backward(states, norm_weight, norm_bias, weight)
        ctx.batch_size, ctx.num_groups, ctx.eps = batch_size, num_groups, eps
        normalised, _, _ = _group_norm(_videos(states, batch_size), norm_weight, norm_bias, num_groups, eps)
        return F.conv2d(_frames(F.silu(normalised)), weight, bias, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        states, norm_weight, norm_bias, weight = ctx.saved_tensors
        videos = _videos(states, ctx.batch_size)
        normalised, mean, rstd = _group_norm(videos, norm_weight, norm_bias, ctx.num_groups, ctx.eps)
        of_activated, of_weight, of_bias = torch.ops.aten.convolution_backward(
            gradient,
            _frames(F.silu(normalised)).to(gradient.dtype),
            weight.to(gradient.dtype),
            [len(weight)],
            stride=[1, 1],
            padding=[1, 1],
            dilation=[1, 1],
            transposed=False,
            output_padding=[0, 0],
            groups=1,
            output_mask=[True, *ctx.needs_input_grad[3:5]],
        )
        of_activated = _videos(of_activated, ctx.batch_size).to(normalised.dtype)
        of_normalised = torch.ops.aten.silu_backward(of_activated, normalised)
        del normalised, of_activated
        of_videos, of_norm_weight, of_norm_bias = torch.ops.aten.native_group_norm_backward(
            of_normalised.contiguous(),
            _plain(videos, norm_weight),
            mean,
            rstd,
            norm_weight,
            *_sizes(videos),
            ctx.num_groups,
            ctx.needs_input_grad[:3],
        )
        of_states = None if of_videos is None else _frames(of_videos.to(states.dtype))
        of_weight, of_bias = (None if of is None else of.to(weight.dtype) for of in (of_weight, of_bias))
        return of_states, of_norm_weight, of_norm_bias, of_weight, of_bias, None, None, None


def geglu_linear(projected: Tensor, linear: nn.Linear) -> Tensor:
    """A linear layer of GEGLU: half of the channels, gated by the GELU of the others (Shazeer 2020, equation 6).

    Args:
        projected: (..., 2 * C), floating point.
        linear: Of C channels, with a bias.

    Returns:
        (..., C_out), in the type that autocast gives it.
    """
    return _GEGLULinear.apply(projected, linear.weight, linear.bias)


def group_norm_silu_conv(states: Tensor, norm: nn.GroupNorm, conv: nn.Conv2d, batch_size: int) -> Tensor:
    """A convolution of the SiLU of the group norm (Wu and He 2018) over all frames of a video.

    Args:
        states: (B * F, C, H, W), floating point.
        norm: The norm, with weights.
        conv: 3 by 3 with a padding of 1, and a bias.
        batch_size: B.

    Returns:
        (B * F, C_out, H, W), in the type that autocast gives it.
    """
    return _GroupNormSiLUConv.apply(
        states, norm.weight, norm.bias, conv.weight, conv.bias, batch_size, norm.num_groups, norm.eps
    )


def _videos(frames: Tensor, batch_size: int) -> Tensor:
    """(B * F, C, H, W) as (B, C, F, H, W)."""
    return frames.unflatten(0, (batch_size, -1)).transpose(1, 2)


def _frames(videos: Tensor) -> Tensor:
    """(B, C, F, H, W) as (B * F, C, H, W)."""
    return videos.transpose(1, 2).flatten(0, 1)


def _group_norm(states: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float):
    """Normalised states, and each group's mean and reciprocal standard deviation."""
    return torch.native_group_norm(_plain(states, weight), weight, bias, *_sizes(states), num_groups, eps)


def _plain(states: Tensor, weight: Tensor) -> Tensor:
    """In the type that autocast takes: on a GPU the weights', while a CPU takes narrower states as they are."""
    return (states.to(weight.dtype) if states.is_cuda else states).contiguous()


def _sizes(states: Tensor) -> tuple[int, int, int]:
    """Samples, channels, and positions of each."""
    return states.shape[0], states.shape[1], states[0, 0].numel()
