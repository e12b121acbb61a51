"""Group norm and SiLU over channels-last states as Triton kernels, forward and backward.

Statistics are float32 and merged from parts in a fixed order (Chan et al. 1979), without atomic additions, so that
results are the same in every run. Kernels of well-kept libraries were looked for: Liger's `GroupNorm` knows no
SiLU and no channels-last memory, and adds its weights' gradients atomically; apex's has to be compiled and knows no
frames.

States are (S, R, C): S samples that are normalised by themselves, R rows of C channels in G groups of neighbours.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_ROWS, BLOCK_GROUPS = 32, 4
MAX_CHUNKS = 64
"""Parts in which a sample's rows are worked on at once."""


@triton.jit
def _moments(
    x,
    parts,
    rows,
    channels,
    groups,
    rows_per_chunk,
    chunks,
    width: tl.constexpr,
    block_rows: tl.constexpr,
    block_groups: tl.constexpr,
):
    """Mean and sum of squared deviations of each group in one chunk of rows."""
    sample, block, chunk = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    size = channels // groups
    group = block * block_groups + tl.arange(0, block_groups)
    inner = tl.arange(0, width)
    columns = group[:, None] * size + inner[None, :]
    valid = (group[:, None] < groups) & (inner[None, :] < size)
    first = chunk * rows_per_chunk
    last = tl.minimum(first + rows_per_chunk, rows)
    count = tl.zeros((block_groups,), tl.float32)
    mean = tl.zeros((block_groups,), tl.float32)
    deviation = tl.zeros((block_groups,), tl.float32)
    for start in range(first, last, block_rows):
        row = start + tl.arange(0, block_rows)
        mask = (row < last)[:, None, None] & valid[None, :, :]
        at = (sample * rows + row).to(tl.int64)[:, None, None] * channels + columns[None, :, :]
        value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        number = (tl.minimum(last - start, block_rows) * size).to(tl.float32)
        own_mean = tl.sum(tl.sum(value, axis=2), axis=0) / number
        centred = tl.where(mask, value - own_mean[None, :, None], 0.0)
        own_deviation = tl.sum(tl.sum(centred * centred, axis=2), axis=0)
        delta, together = own_mean - mean, count + number
        mean += delta * number / together
        deviation += own_deviation + delta * delta * count * number / together
        count = together
    place = (sample * chunks + chunk) * groups + group
    tl.store(parts + 2 * place, mean, mask=group < groups)
    tl.store(parts + 2 * place + 1, deviation, mask=group < groups)


@triton.jit
def _normalise(
    x,
    weight,
    bias,
    parts,
    y,
    means,
    rstds,
    rows,
    channels,
    groups,
    rows_per_chunk,
    chunks,
    eps,
    width: tl.constexpr,
    block_rows: tl.constexpr,
    block_groups: tl.constexpr,
    silu: tl.constexpr,
):
    """Merges the parts of the moments, and normalises one chunk of rows."""
    sample, block, chunk = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    size = channels // groups
    group = block * block_groups + tl.arange(0, block_groups)
    inner = tl.arange(0, width)
    columns = group[:, None] * size + inner[None, :]
    valid = (group[:, None] < groups) & (inner[None, :] < size)
    count = tl.zeros((block_groups,), tl.float32)
    mean = tl.zeros((block_groups,), tl.float32)
    deviation = tl.zeros((block_groups,), tl.float32)
    for part in range(0, chunks):
        place = (sample * chunks + part) * groups + group
        own_mean = tl.load(parts + 2 * place, mask=group < groups, other=0.0)
        own_deviation = tl.load(parts + 2 * place + 1, mask=group < groups, other=0.0)
        number = (tl.minimum(rows - part * rows_per_chunk, rows_per_chunk) * size).to(tl.float32)
        delta, together = own_mean - mean, count + number
        mean += delta * number / together
        deviation += own_deviation + delta * delta * count * number / together
        count = together
    rstd = 1.0 / tl.sqrt(deviation / count + eps)
    if chunk == 0:
        tl.store(means + sample * groups + group, mean, mask=group < groups)
        tl.store(rstds + sample * groups + group, rstd, mask=group < groups)
    scale = tl.load(weight + columns, mask=valid, other=0.0).to(tl.float32)
    shift = tl.load(bias + columns, mask=valid, other=0.0).to(tl.float32)
    first = chunk * rows_per_chunk
    last = tl.minimum(first + rows_per_chunk, rows)
    for start in range(first, last, block_rows):
        row = start + tl.arange(0, block_rows)
        mask = (row < last)[:, None, None] & valid[None, :, :]
        at = (sample * rows + row).to(tl.int64)[:, None, None] * channels + columns[None, :, :]
        value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        value = (value - mean[None, :, None]) * rstd[None, :, None] * scale[None, :, :] + shift[None, :, :]
        if silu:
            value = value * tl.sigmoid(value)
        tl.store(y + at, value.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _weight_gradients(
    dy,
    x,
    weight,
    bias,
    means,
    rstds,
    parts,
    rows,
    channels,
    groups,
    rows_per_chunk,
    chunks,
    width: tl.constexpr,
    block_rows: tl.constexpr,
    block_groups: tl.constexpr,
    silu: tl.constexpr,
):
    """Each channel's gradients of weight and bias, over one chunk of rows."""
    sample, block, chunk = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    size = channels // groups
    group = block * block_groups + tl.arange(0, block_groups)
    inner = tl.arange(0, width)
    columns = group[:, None] * size + inner[None, :]
    valid = (group[:, None] < groups) & (inner[None, :] < size)
    mean = tl.load(means + sample * groups + group, mask=group < groups, other=0.0)
    rstd = tl.load(rstds + sample * groups + group, mask=group < groups, other=0.0)
    scale = tl.load(weight + columns, mask=valid, other=0.0).to(tl.float32)
    shift = tl.load(bias + columns, mask=valid, other=0.0).to(tl.float32)
    of_weight = tl.zeros((block_groups, width), tl.float32)
    of_bias = tl.zeros((block_groups, width), tl.float32)
    first = chunk * rows_per_chunk
    last = tl.minimum(first + rows_per_chunk, rows)
    for start in range(first, last, block_rows):
        row = start + tl.arange(0, block_rows)
        mask = (row < last)[:, None, None] & valid[None, :, :]
        at = (sample * rows + row).to(tl.int64)[:, None, None] * channels + columns[None, :, :]
        normal = (tl.load(x + at, mask=mask, other=0.0).to(tl.float32) - mean[None, :, None]) * rstd[None, :, None]
        gradient = tl.load(dy + at, mask=mask, other=0.0).to(tl.float32)
        if silu:
            value = normal * scale[None, :, :] + shift[None, :, :]
            gate = tl.sigmoid(value)
            gradient = gradient * gate * (1.0 + value * (1.0 - gate))
        of_weight += tl.sum(gradient * normal, axis=0)
        of_bias += tl.sum(gradient, axis=0)
    place = (sample * chunks + chunk) * channels + columns
    tl.store(parts + place, of_weight, mask=valid)
    tl.store(parts + tl.num_programs(0) * chunks * channels + place, of_bias, mask=valid)


@triton.jit
def _input_gradient(
    dy,
    x,
    weight,
    bias,
    means,
    rstds,
    parts,
    dx,
    rows,
    channels,
    groups,
    rows_per_chunk,
    chunks,
    width: tl.constexpr,
    block_rows: tl.constexpr,
    block_groups: tl.constexpr,
    silu: tl.constexpr,
):
    """The gradient of one chunk of rows, from the sums over the whole group."""
    sample, block, chunk = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    size = channels // groups
    group = block * block_groups + tl.arange(0, block_groups)
    inner = tl.arange(0, width)
    columns = group[:, None] * size + inner[None, :]
    valid = (group[:, None] < groups) & (inner[None, :] < size)
    mean = tl.load(means + sample * groups + group, mask=group < groups, other=0.0)
    rstd = tl.load(rstds + sample * groups + group, mask=group < groups, other=0.0)
    scale = tl.load(weight + columns, mask=valid, other=0.0).to(tl.float32)
    shift = tl.load(bias + columns, mask=valid, other=0.0).to(tl.float32)
    of_weight = tl.zeros((block_groups, width), tl.float32)
    of_bias = tl.zeros((block_groups, width), tl.float32)
    for part in range(0, chunks):
        place = (sample * chunks + part) * channels + columns
        of_weight += tl.load(parts + place, mask=valid, other=0.0)
        of_bias += tl.load(parts + tl.num_programs(0) * chunks * channels + place, mask=valid, other=0.0)
    number = (rows * size).to(tl.float32)
    along = tl.sum(of_weight * scale, axis=1) / number
    level = tl.sum(of_bias * scale, axis=1) / number
    first = chunk * rows_per_chunk
    last = tl.minimum(first + rows_per_chunk, rows)
    for start in range(first, last, block_rows):
        row = start + tl.arange(0, block_rows)
        mask = (row < last)[:, None, None] & valid[None, :, :]
        at = (sample * rows + row).to(tl.int64)[:, None, None] * channels + columns[None, :, :]
        normal = (tl.load(x + at, mask=mask, other=0.0).to(tl.float32) - mean[None, :, None]) * rstd[None, :, None]
        gradient = tl.load(dy + at, mask=mask, other=0.0).to(tl.float32)
        if silu:
            value = normal * scale[None, :, :] + shift[None, :, :]
            gate = tl.sigmoid(value)
            gradient = gradient * gate * (1.0 + value * (1.0 - gate))
        gradient = gradient * scale[None, :, :] - level[None, :, None] - normal * along[None, :, None]
        tl.store(dx + at, (gradient * rstd[None, :, None]).to(dx.dtype.element_ty), mask=mask)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalises contiguous (S, R, C). Returns the same shape and dtype, and means and 1 / deviations (S, G)."""
    grid, sizes, meta = _launch(x, groups)
    y, parts = torch.empty_like(x), x.new_empty(len(x), sizes[-1], groups, 2, dtype=torch.float32)
    means, rstds = (x.new_empty(len(x), groups, dtype=torch.float32) for _ in range(2))
    _moments[grid](x, parts, *sizes, **meta)
    _normalise[grid](x, weight, bias, parts, y, means, rstds, *sizes, eps, **meta, silu=silu)
    return y, means, rstds


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, means: Tensor, rstds: Tensor, groups: int, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `forward` for x (S, R, C), weight and bias (C,), the latter float32."""
    grid, sizes, meta = _launch(x, groups)
    dx, parts = torch.empty_like(x), x.new_empty(2, len(x), sizes[-1], x.shape[2], dtype=torch.float32)
    _weight_gradients[grid](dy, x, weight, bias, means, rstds, parts, *sizes, **meta, silu=silu)
    _input_gradient[grid](dy, x, weight, bias, means, rstds, parts, dx, *sizes, **meta, silu=silu)
    of_weight, of_bias = parts.sum((1, 2))
    return dx, of_weight, of_bias


def _launch(x: Tensor, groups: int) -> tuple[tuple[int, int, int], tuple[int, ...], dict[str, int]]:
    """Grid, sizes and constants of all kernels."""
    samples, rows, channels = x.shape
    chunks = min(MAX_CHUNKS, triton.cdiv(rows, BLOCK_ROWS))
    rows_per_chunk = triton.cdiv(triton.cdiv(rows, chunks), BLOCK_ROWS) * BLOCK_ROWS
    chunks = triton.cdiv(rows, rows_per_chunk)
    meta = {
        "width": triton.next_power_of_2(channels // groups),
        "block_rows": BLOCK_ROWS,
        "block_groups": BLOCK_GROUPS,
    }
    grid = (samples, triton.cdiv(groups, BLOCK_GROUPS), chunks)
    return grid, (rows, channels, groups, rows_per_chunk, chunks), meta
