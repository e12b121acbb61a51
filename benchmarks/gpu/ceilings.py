"""What the card itself can do, without our code: the rates that a step cannot exceed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F


def ceilings(device: str, small: bool) -> dict[str, Any]:
    """TFLOP/s of a product, a convolution and attention in bfloat16, GB/s of a copy, microseconds of a launch."""
    scale = 64 if small else 1
    n, images, heads = 8192 // scale, 128 // scale, 1024 // scale
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    figures = {"matrix_tflops": 2 * n**3 / _seconds(lambda: a @ b, device) / 1e12}
    conv = torch.nn.Conv2d(320, 320, 3, padding=1, bias=False, device=device, dtype=torch.bfloat16)
    conv = conv.to(memory_format=torch.channels_last)
    x = torch.randn(images, 320, 32, 32, device=device, dtype=torch.bfloat16).contiguous(
        memory_format=torch.channels_last
    )
    with torch.no_grad():
        figures["convolution_tflops"] = 2 * images * 1024 * 320 * 320 * 9 / _seconds(lambda: conv(x), device) / 1e12
    q, k, v = (torch.randn(1, heads, 1024, 40, device=device, dtype=torch.bfloat16) for _ in range(3))
    products = 4 * heads * 1024 * 1024 * 40
    seconds = _seconds(lambda: F.scaled_dot_product_attention(q, k, v), device)
    figures["attention_tflops"] = products / seconds / 1e12
    source = torch.empty(2**30 // scale, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    figures["copy_gb_per_second"] = 2 * len(source) / _seconds(lambda: target.copy_(source), device) / 1e9
    tiny = torch.zeros(8, device=device)
    figures["launch_microseconds"] = 1e6 * _seconds(lambda: tiny.add_(1), device, 2000 // scale)
    return figures


def _seconds(function: Callable[[], object], device: str, repeats: int = 10) -> float:
    """Mean of some calls, after two that warm up."""
    for count in (2, repeats):
        _wait(device)
        started = time.perf_counter()
        for _ in range(count):
            function()
        _wait(device)
    return (time.perf_counter() - started) / repeats


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
