"""Run by a test under Triton's interpreter: the prototype's norm kernels against a float64 reference."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.gpu import norms, triton_norm

EPS = 1e-5


def main() -> None:
    """Compares outputs and gradients, in channel counts that are no powers of two and rows that fill no block."""
    torch.manual_seed(0)
    for samples, rows, channels, groups, silu in [(2, 70, 40, 4, True), (1, 300, 24, 8, False), (3, 5, 64, 32, True)]:
        x, dy = torch.randn(samples, rows, channels) * 3 + 5, torch.randn(samples, rows, channels)
        weight, bias = torch.randn(channels), torch.randn(channels)
        exact = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
        y = F.group_norm(exact[0].transpose(1, 2), groups, *exact[1:], EPS).transpose(1, 2)
        y = F.silu(y) if silu else y
        expected = [y, *torch.autograd.grad(y, exact, dy.double())]
        for forward, backward in [
            (triton_norm.forward, triton_norm.backward),
            (norms.norm_act, norms.norm_act_backward),  # composed of torch's operators
        ]:
            made, means, rstds = forward(x, weight, bias, groups, EPS, silu)
            found = [made, *backward(dy, x, weight, bias, means, rstds, groups, silu)]
            for one, other in zip(found, expected, strict=True):
                assert (one.double() - other).abs().max() <= 1e-5 * max(1.0, float(other.abs().max()))
        narrow = triton_norm.forward(x.bfloat16(), weight, bias, groups, EPS, silu)[0]
        assert narrow.dtype == torch.bfloat16 and (narrow.double() - y).abs().max() <= 0.02 * float(y.abs().max())


if __name__ == "__main__":
    main()
