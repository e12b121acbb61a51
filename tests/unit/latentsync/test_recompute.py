"""Activations that are computed again give the bits of torch's own, and keep less."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsync_ray.latentsync.models.recompute import geglu_linear, group_norm_silu_conv

DTYPES = [torch.float32, torch.bfloat16]


def plain_geglu_linear(projected: Tensor, linear: nn.Linear) -> Tensor:
    hidden_states, gate = projected.chunk(2, dim=-1)
    return linear(hidden_states * F.gelu(gate))  # type: ignore[no-any-return]


def plain_group_norm_silu_conv(states: Tensor, norm: nn.GroupNorm, conv: nn.Conv2d, batch_size: int) -> Tensor:
    videos = states.unflatten(0, (batch_size, -1)).transpose(1, 2)
    return conv(F.silu(norm(videos)).transpose(1, 2).flatten(0, 1))  # type: ignore[no-any-return]


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


def check(function: Callable[..., Tensor], plain: Callable[..., Tensor], trained: str, **inputs: Any) -> None:
    """Output and gradients are those of the plain function, in half precision under autocast; nothing is kept."""
    for name, of in inputs.items():
        if isinstance(of, Tensor | nn.Module):
            of.requires_grad_(name in trained.split())
    args = inputs.values()
    wanted = [p for of in args for p in (of.parameters() if isinstance(of, nn.Module) else [of])]
    wanted = [p for p in wanted if isinstance(p, Tensor) and p.requires_grad]
    with torch.autocast("cpu", torch.bfloat16, enabled=next(iter(args)).dtype == torch.bfloat16):
        made = [one(*args) for one in (function, plain)]
        assert num_kept(function, *args) == 0 < num_kept(plain, *args)
    gradient = torch.randn_like(made[0])
    found, expected = ([one, *torch.autograd.grad(one, wanted, gradient)] for one in made)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("trained", ["projected linear", "projected", "linear"])
def test_geglu_linear_is_torchs_own_bit_for_bit(trained: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    check(
        geglu_linear,
        plain_geglu_linear,
        trained,
        projected=torch.randn(2, 5, 12, dtype=dtype),
        linear=nn.Linear(6, 7),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("trained", ["states norm conv", "states", "norm", "conv"])
def test_group_norm_silu_conv_is_torchs_own_bit_for_bit(trained: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, 8, eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    check(
        group_norm_silu_conv,
        plain_group_norm_silu_conv,
        trained,
        states=torch.randn(6, 8, 4, 4, dtype=dtype),
        norm=norm,
        conv=nn.Conv2d(8, 5, 3, padding=1),
        batch_size=2,
    )
