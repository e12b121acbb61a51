"""How many FLOPs a step of a model takes, counted while it is taken, and how many a GPU could take."""

# mypy: disable-error-code="no-untyped-call, no-untyped-def"
# (torch leaves dispatch modes untyped)

from __future__ import annotations

from typing import Any, Self

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
_SCORES_AGAIN = (
    aten._scaled_dot_product_flash_attention_backward,
    aten._scaled_dot_product_efficient_attention_backward,
    aten._scaled_dot_product_cudnn_attention_backward,
)
"""Kernels that compute attention's scores again: one of five products, which a model does not need."""
_PEAK_TFLOPS = {"H100 PCIe": 756, "H100": 989, "H200": 989, "A100": 312, "L40S": 362, "L4": 121, "A10": 125}
"""Dense bfloat16 and float16, by a part of the device's name, the more special one first: NVIDIA's data sheets, half
of the figures with sparsity."""


class StepMode(TorchDispatchMode):
    """Sees every operator of a step while it is entered, and knows which of them checkpointing computes again."""

    def __init__(self) -> None:
        super().__init__()
        self.in_backward = False
        """Whether the pass is the backward one; the caller sets it between the two."""
        self._depth = 0

    @property
    def recomputes(self) -> bool:
        """Whether a module runs in the backward pass: only checkpointing does that."""
        return self.in_backward and self._depth > 0

    def __enter__(self) -> Self:
        """Begins to count."""
        self._hooks = (
            register_module_forward_pre_hook(self._enter_module),
            register_module_forward_hook(self._leave_module, always_call=True),
        )
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Ends to count."""
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def _enter_module(self, *_: object) -> None:
        self._depth += 1

    def _leave_module(self, *_: object) -> None:
        self._depth -= 1


class StepFlops(StepMode):
    """Counts the FLOPs of a forward and a backward pass, leaving out what checkpointing computes again.

    They are those of matrix products, convolutions and attention; norms and activations are left out, as is usual for
    model-FLOPs utilisation (PaLM, https://arxiv.org/abs/2204.02311, appendix B).
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0
        """Counted so far."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Counts one operator."""
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None and not self.recomputes:
            share = 4 / 5 if func._overloadpacket in _SCORES_AGAIN else 1
            self.total += share * formula(*args, **(kwargs or {}), out_val=out)
        return out


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOPs a second that a device could take; None where that is not known."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    return named_peak_flops(torch.cuda.get_device_name(device))


def named_peak_flops(name: str) -> float | None:
    """FLOPs a second, dense bfloat16, by the name that CUDA gives a device; None for one that is not known."""
    return next((1e12 * tflops for part, tflops in _PEAK_TFLOPS.items() if part in name.replace("-", " ")), None)
