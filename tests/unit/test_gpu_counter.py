"""The counter, on layers whose kernels, FLOPs and bytes are counted by hand here."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from benchmarks.gpu.counter import Cost, Counter, touched_bytes
from benchmarks.gpu.cuda_rules import cuda_rules
from benchmarks.gpu.rates import usual_seconds

B, I, O = 4, 6, 10  # noqa: E741
"""Rows, and the widths of a linear layer."""


def counted(function: Callable[..., Tensor], *inputs: Tensor, autocast: bool = False) -> dict[tuple[str, str], Cost]:
    """What a forward pass takes, and a backward pass from a gradient of ones that is there already."""
    with cuda_rules(), Counter() as counter:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = function(*inputs)
        gradient = torch.ones_like(out)
        counter.in_backward = True
        out.backward(gradient)
    elementwise = counter.costs["forward", "elementwise"]
    elementwise.kernels -= 1  # the gradient of ones
    elementwise.num_bytes -= touched_bytes(out)
    return counter.costs


def figures(costs: dict[tuple[str, str], Cost], phase: str, kind: str) -> tuple[int, float, float]:
    cost = costs.get((phase, kind), Cost())
    return cost.kernels, cost.flops, cost.num_bytes


def test_a_linear_layer() -> None:
    costs = counted(nn.Linear(I, O), torch.randn(B, I, requires_grad=True))
    # One product with the bias added to it; reads input, weight and bias, writes the output.
    assert figures(costs, "forward", "matrix product") == (1, 2 * B * I * O, 4 * (B * I + I * O + O + B * O))
    # Backward: one product for the input, one for the weight; each reads two of the three and writes the third.
    both = 2 * 4 * (B * I + I * O + B * O)
    assert figures(costs, "backward", "matrix product") == (2, 2 * 2 * B * I * O, both)
    # The bias is the sum over the rows.
    assert figures(costs, "backward", "elementwise") == (1, 0, 4 * (B * O + O))


def test_a_linear_layer_under_autocast_casts_what_it_is_given() -> None:
    costs = counted(nn.Linear(I, O), torch.randn(B, I, requires_grad=True), autocast=True)
    # Input, weight and bias are read with 4 bytes a number and written with 2.
    assert figures(costs, "forward", "cast or copy") == (3, 0, 6 * (B * I + I * O + O))
    assert figures(costs, "forward", "matrix product") == (1, 2 * B * I * O, 2 * (B * I + I * O + O + B * O))
    # So are the gradients, the other way.
    assert figures(costs, "backward", "cast or copy") == (3, 0, 6 * (B * I + I * O + O))


def test_a_frozen_layer_held_in_bfloat16_casts_no_weight() -> None:
    layer = nn.Linear(I, O).requires_grad_(False).to(torch.bfloat16)
    costs = counted(layer, torch.randn(B, I, requires_grad=True), autocast=True)
    assert figures(costs, "forward", "cast or copy") == (1, 0, 6 * B * I)
    assert figures(costs, "backward", "matrix product")[:2] == (1, 2 * B * I * O)


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_convolution_transposes_unless_it_is_channels_last(channels_last: bool) -> None:
    layer = nn.Conv2d(I, O, 3, padding=1, bias=False).to(torch.bfloat16)
    x = torch.randn(2, I, 8, 8, dtype=torch.bfloat16)
    if channels_last:
        layer, x = layer.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    costs = counted(layer, x.requires_grad_())
    flops, sizes = 2 * 2 * 8 * 8 * I * O * 9, (2 * I * 64, O * I * 9, 2 * O * 64)
    assert figures(costs, "forward", "convolution") == (2, flops, 2 * sum(sizes))
    assert figures(costs, "backward", "convolution")[:2] == (4, 2 * flops)
    transposed = figures(costs, "forward", "transposing for convolutions")
    assert transposed == ((0, 0, 0) if channels_last else (3, 0, 2 * 2 * sum(sizes)))


def test_a_norm_is_computed_in_float32() -> None:
    norm = nn.GroupNorm(2, I)
    x = torch.randn(2, I, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    costs = counted(norm, x, autocast=True)
    # A cast, then three kernels; the output is float32, mean and deviation are two numbers for each group.
    size = 2 * I * 16
    assert figures(costs, "forward", "cast or copy") == (1, 0, 6 * size)
    assert figures(costs, "forward", "norm") == (3, 0, 4 * (2 * size + 2 * I + 2 * 2 * 2))


def test_attention_is_a_kernel_that_keeps_no_scores() -> None:
    with FakeTensorMode():
        heads = [torch.randn(1, 2, 5, 8, requires_grad=True) for _ in range(3)]
        costs = counted(lambda q, k, v: F.scaled_dot_product_attention(q, k, v), *heads, autocast=True)
    products = 2 * 2 * (2 * 5 * 5 * 8)  # two heads, query by key and scores by value
    assert figures(costs, "forward", "attention")[:2] == (1, products)
    assert figures(costs, "backward", "attention")[:2] == (3, products * 5 / 2)


def test_what_a_checkpoint_computes_again_is_told_apart() -> None:
    layer, x = nn.Sequential(nn.Linear(I, O), nn.SiLU()), torch.randn(B, I, requires_grad=True)
    costs = counted(lambda tensor: checkpoint(layer, tensor, use_reentrant=False), x)
    assert figures(costs, "again", "matrix product") == figures(costs, "forward", "matrix product")
    assert figures(costs, "backward", "matrix product")[0] == 2


def test_usual_seconds_are_the_largest_of_three() -> None:
    assert usual_seconds("matrix product", "bfloat16", 989e12 * 0.55, 1, 1) == pytest.approx(1)
    assert usual_seconds("elementwise", "float32", 0, 2.5e12, 1) == pytest.approx(1)
    assert usual_seconds("elementwise", "float32", 0, 8, 4) == pytest.approx(1e-5)


def test_expanded_tensors_are_read_once() -> None:
    assert touched_bytes(torch.zeros(3, 1).expand(3, 100)) == 12
