"""What CUDA does otherwise than a CPU, for counting on a CPU what a GPU would be told.

CUDA's autocast computes norms, softmax and some losses in float32 (torch's documentation, "Autocast Op Reference"),
its group norm wants plain memory, and attention is one kernel that keeps no scores.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from latentsync_ray.latentsync.models import recompute

aten = torch.ops.aten
_IN_FLOAT32 = ("layer_norm", "softmax", "cosine_similarity", "mse_loss")


@contextlib.contextmanager
def cuda_rules() -> Iterator[None]:
    """Within this context operators on CPU tensors are those that CUDA would run under autocast."""
    with contextlib.ExitStack() as stack:
        for name in _IN_FLOAT32:
            stack.enter_context(patch.object(F, name, _in_float32(getattr(F, name))))
        stack.enter_context(patch.object(F, "group_norm", _in_float32(_plain_first(F.group_norm))))
        stack.enter_context(patch.object(F, "scaled_dot_product_attention", _flash_attention))
        stack.enter_context(patch.object(recompute, "_plain", _plain))
        stack.enter_context(patch.dict(flop_registry, _ATTENTION_FLOPS))
        yield


def _in_float32(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def called(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if torch.is_autocast_enabled("cpu") and tensor.is_floating_point():
            tensor = tensor.float()
            args = tuple(a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)
        return function(tensor, *args, **kwargs)

    return called


def _plain_first(group_norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda tensor, *args, **kwargs: group_norm(tensor.contiguous(), *args, **kwargs)


def _plain(states: Tensor, weight: Tensor) -> Tensor:
    return states.to(weight.dtype).contiguous()


def _flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> Tensor:
    assert attn_mask is None and dropout_p == 0 and not is_causal
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
    scale = scale or query.shape[-1] ** -0.5
    return aten._scaled_dot_product_flash_attention(query, key, value, 0.0, False, scale=scale)[0]


def _forward_flops(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _backward_flops(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape)


_ATTENTION_FLOPS = {  # by tensors, as a dispatch mode has them
    aten._scaled_dot_product_flash_attention: _forward_flops,
    aten._scaled_dot_product_flash_attention_backward: _backward_flops,
}
