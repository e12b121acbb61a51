"""Counts what runs below autograd: kernels, FLOPs, bytes and usual seconds, by phase and kind of operator.

Bytes are inputs read once and outputs written once. A convolution's tensors that are not channels-last cost two
transposing kernels' traffic besides, as in cuDNN's tensor-core kernels.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.gpu.rates import LEAST_SECONDS, TRANSPOSING, USUAL_BANDWIDTH, moments_seconds, usual_seconds
from latentsync_ray.latentsync.flops import StepMode

NUM_KERNELS = {
    "native_group_norm": 3,
    "native_group_norm_backward": 6,
    "native_layer_norm_backward": 3,
    "convolution": 2,
    "convolution_backward": 4,
    "_scaled_dot_product_flash_attention_backward": 3,
    "max_pool2d_with_indices_backward": 2,
    "norm_act": 2,
    "norm_act_backward": 3,
}
"""Of an operator on CUDA, where there is more than one (read off torch 2.11's sources)."""
_KINDS = {
    "convolution": ("convolution", "convolution_backward"),
    "matrix product": ("mm", "addmm", "bmm", "baddbmm"),
    "attention": ("_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_backward"),
    "norm": ("native_group_norm", "native_group_norm_backward", "norm_act", "norm_act_backward"),
    "layer norm": ("native_layer_norm", "native_layer_norm_backward"),
    "cast or copy": ("_to_copy", "clone", "copy_"),
}
KINDS = {name: kind for kind, names in _KINDS.items() for name in names}
"""Operator -> kind; all others are elementwise."""
_NO_KERNEL = {
    "_unsafe_view",
    "detach",
    "alias",
    "empty",
    "empty_like",
    "empty_strided",
    "lift_fresh",
    "_reshape_alias",
}


@dataclass
class Cost:
    """What some operators take."""

    kernels: int = 0
    flops: float = 0.0
    num_bytes: float = 0.0
    seconds: float = 0.0
    """At usual rates of an H100."""

    def __iadd__(self, other: Cost) -> Cost:
        """Adds another one's."""
        for f in fields(self):
            setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name))
        return self


def total(costs: Iterable[Cost]) -> Cost:
    """All of them together."""
    made = Cost()
    for cost in costs:
        made += cost
    return made


class Counter(StepMode):
    """Counts operators while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.costs: dict[tuple[str, str], Cost] = collections.defaultdict(Cost)
        """By phase (forward, backward, again for what checkpointing computes again) and kind."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name.split("::")[1]
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if func.namespace != "prim" and outputs and not func.is_view and name not in _NO_KERNEL:
            self._count(func, name, args, kwargs, out, inputs, outputs)
        return out

    def _count(
        self, func: Any, name: str, args: Any, kwargs: Any, out: Any, inputs: list[Tensor], outputs: list[Tensor]
    ) -> None:
        kind = KINDS.get(name, "elementwise")
        dtype = str((inputs if kind == "convolution" else outputs)[0].dtype).removeprefix("torch.")
        formula = flop_registry.get(func._overloadpacket)
        flops = formula(*args, **kwargs, out_val=out) if formula else 0
        num_bytes = sum(map(touched_bytes, inputs)) + sum(map(touched_bytes, outputs))
        kernels = NUM_KERNELS.get(name, 1)
        seconds = usual_seconds(kind, dtype, flops, num_bytes, kernels)
        if name == "native_group_norm":
            _, _, _, samples, _, _, groups, _ = args
            size = touched_bytes(inputs[0])
            seconds = max(seconds, moments_seconds(size, samples * groups) + 2 * size / USUAL_BANDWIDTH)
        phase = "again" if self.recomputes else "backward" if self.in_backward else "forward"
        self.costs[phase, kind] += Cost(kernels, flops, num_bytes, seconds)
        if kind == "convolution" and dtype != "float32":
            given = inputs[: 2 if name == "convolution" else 3]
            self.costs[phase, "transposing for convolutions"] += _transposed([*given, *outputs])


def _transposed(tensors: list[Tensor]) -> Cost:
    """What turning a convolution's tensors to channels-last and back takes."""
    cost = Cost()
    for tensor in tensors:
        wide = tensor.ndim == 4 and tensor.shape[2] * tensor.shape[3] > 1
        if wide and not tensor.is_contiguous(memory_format=torch.channels_last):
            moved = 2 * touched_bytes(tensor)
            cost += Cost(1, 0, moved, max(moved / (TRANSPOSING * USUAL_BANDWIDTH), LEAST_SECONDS))
    return cost


def touched_bytes(tensor: Tensor) -> int:
    """Bytes that a kernel must touch: of an expanded tensor, those that are stored."""
    numel = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        numel *= size if stride else 1
    return numel * tensor.element_size()
