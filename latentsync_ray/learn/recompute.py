"""Activation functions whose backward pass keeps their input alone and computes the rest again.

What they do not keep is a tenth of what a UNet's training step holds (LOG.md, 2026-11-27). `torch.utils.checkpoint`
could do the same, but costs a third of a millisecond a call, which a small network feels.
"""

# mypy: disable-error-code="no-any-return, no-untyped-call, no-untyped-def, misc, override"
# (torch leaves autograd functions untyped)

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class _GEGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, projected: Tensor) -> Tensor:
        ctx.save_for_backward(projected)
        hidden_states, gate = projected.chunk(2, dim=-1)
        return hidden_states * F.gelu(gate)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        (projected,) = ctx.saved_tensors
        hidden_states, gate = projected.chunk(2, dim=-1)
        of_gate = torch.ops.aten.gelu_backward(gradient * hidden_states, gate)
        return torch.cat([gradient * F.gelu(gate), of_gate], dim=-1)


class _GroupNormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float) -> Tensor:
        ctx.save_for_backward(states, weight, bias)
        ctx.num_groups, ctx.eps = num_groups, eps
        normalised, _, _ = _group_norm(states, weight, bias, num_groups, eps)
        return F.silu(normalised)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        states, weight, bias = ctx.saved_tensors
        normalised, mean, rstd = _group_norm(states, weight, bias, ctx.num_groups, ctx.eps)
        of_normalised = torch.ops.aten.silu_backward(gradient, normalised)
        del normalised
        of_states, of_weight, of_bias = torch.ops.aten.native_group_norm_backward(
            of_normalised.contiguous(),
            _plain(states, weight),
            mean,
            rstd,
            weight,
            *_sizes(states),
            ctx.num_groups,
            ctx.needs_input_grad[:3],
        )
        return None if of_states is None else of_states.to(states.dtype), of_weight, of_bias, None, None


def geglu(projected: Tensor) -> Tensor:
    """The first half of the channels, gated by the GELU of the second (Shazeer 2020, equation 6).

    Args:
        projected: (..., 2 * C), floating point.

    Returns:
        (..., C), of the same type.
    """
    return _GEGLU.apply(projected)


def group_norm_silu(states: Tensor, norm: torch.nn.GroupNorm) -> Tensor:
    """SiLU of the group norm (Wu and He 2018), in the type that autocast gives it.

    Args:
        states: (N, C, *), floating point.
        norm: The norm, with weights.

    Returns:
        The same shape.
    """
    return _GroupNormSiLU.apply(states, norm.weight, norm.bias, norm.num_groups, norm.eps)


def _group_norm(states: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float):
    """Normalised states, and each group's mean and reciprocal standard deviation."""
    return torch.native_group_norm(_plain(states, weight), weight, bias, *_sizes(states), num_groups, eps)


def _plain(states: Tensor, weight: Tensor) -> Tensor:
    """In the type that autocast takes: on a GPU the weights', while a CPU takes narrower states as they are."""
    return (states.to(weight.dtype) if states.is_cuda else states).contiguous()


def _sizes(states: Tensor) -> tuple[int, int, int]:
    """Samples, channels, and positions of each."""
    return states.shape[0], states.shape[1], states[0, 0].numel()
