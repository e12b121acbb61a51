"""Activations that are computed again give the bits of torch's own, and keep less."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsync_ray.learn.recompute import geglu, group_norm_silu


def plain_geglu(projected: Tensor) -> Tensor:
    hidden_states, gate = projected.chunk(2, dim=-1)
    return hidden_states * F.gelu(gate)


def plain_group_norm_silu(states: Tensor, norm: nn.GroupNorm) -> Tensor:
    return F.silu(norm(states))


def num_kept(function: Callable[..., Tensor], *inputs: Any) -> int:
    """Numbers that a call keeps for the backward pass, its inputs and weights left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in inputs if isinstance(tensor, Tensor)}
    own |= {p.untyped_storage().data_ptr() for m in inputs if isinstance(m, nn.Module) for p in m.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(*inputs)
    return sum(numel for place, numel in kept.items() if place not in own)


def test_geglu_is_torchs_own_bit_for_bit() -> None:
    torch.manual_seed(0)
    projected, gradient = torch.randn(2, 5, 12, requires_grad=True), torch.randn(2, 5, 6)
    (expected,) = torch.autograd.grad(plain_geglu(projected), projected, gradient)
    (found,) = torch.autograd.grad(geglu(projected), projected, gradient)
    assert torch.equal(geglu(projected), plain_geglu(projected))
    assert torch.equal(found, expected)
    assert num_kept(geglu, projected) == 0 < num_kept(plain_geglu, projected)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_group_norm_silu_is_torchs_own_bit_for_bit(transposed: bool, frozen: bool) -> None:
    torch.manual_seed(0)
    states, gradient = torch.randn(2, 3, 8, 4, 4), torch.randn(2, 8, 3, 4, 4)
    states = states.transpose(1, 2) if transposed else states.transpose(1, 2).contiguous()
    states.requires_grad_()
    norm = nn.GroupNorm(4, 8, eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    norm.requires_grad_(not frozen)
    wanted = [states] if frozen else [states, norm.weight, norm.bias]
    expected = torch.autograd.grad(plain_group_norm_silu(states, norm), wanted, gradient)
    found = torch.autograd.grad(group_norm_silu(states, norm), wanted, gradient)
    assert torch.equal(group_norm_silu(states, norm), plain_group_norm_silu(states, norm))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert num_kept(group_norm_silu, states, norm) == 0 < num_kept(plain_group_norm_silu, states, norm)


def test_half_precision_is_autocasts_own() -> None:
    torch.manual_seed(0)
    states = torch.randn(2, 8, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    norm = nn.GroupNorm(4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = plain_group_norm_silu(states, norm), group_norm_silu(states, norm)
    assert found.dtype == expected.dtype and torch.equal(found, expected)
    (of_expected,), (of_found,) = (torch.autograd.grad(made, states, made.detach()) for made in (expected, found))
    assert of_found.dtype == of_expected.dtype and torch.equal(of_found, of_expected)
