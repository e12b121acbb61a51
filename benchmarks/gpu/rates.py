"""How long a kernel takes on an H100, from its FLOPs and bytes."""

from __future__ import annotations

PEAK_FLOPS = {"bfloat16": 989e12, "float16": 989e12, "float32": 67e12}
"""FLOPs a second of an H100 SXM, dense (NVIDIA's data sheet); float32 is not TF32."""
USUAL_SHARE = {"convolution": 0.45, "matrix product": 0.55, "attention": 0.25}
"""Share of the peak that kernels of a kind usually reach in bfloat16."""
USUAL_BANDWIDTH = 2.5e12
"""Bytes a second that elementwise kernels usually reach, of 3.35e12."""
LEAST_SECONDS = 2.5e-6
"""Of a small kernel, with the gap after it."""
TRANSPOSING = 0.6
"""Share of that bandwidth which kernels reach that transpose."""
THREADS_PER_BLOCK, BLOCKS_AT_ONCE, BYTES_ON_THE_WAY, LATENCY_SECONDS = 512, 528, 6, 0.7e-6
"""Of torch's kernel for the moments of a group norm: a block for each sample and group, four on each of 132 SMs."""


def usual_seconds(kind: str, dtype: str, flops: float, num_bytes: float, kernels: int) -> float:
    """Seconds of an operator at usual rates: the largest of what its FLOPs, its bytes and its launches take."""
    rate = PEAK_FLOPS.get(dtype, PEAK_FLOPS["float32"]) * USUAL_SHARE.get(kind, 1.0)
    return max(flops / rate, num_bytes / USUAL_BANDWIDTH, kernels * LEAST_SECONDS)


def moments_seconds(num_bytes: float, num_groups: int) -> float:
    """Seconds in which torch's group norm reads its input for mean and variance, with one block for each group."""
    blocks = min(num_groups, BLOCKS_AT_ONCE)
    return num_bytes / min(USUAL_BANDWIDTH, blocks * THREADS_PER_BLOCK * BYTES_ON_THE_WAY / LATENCY_SECONDS)
