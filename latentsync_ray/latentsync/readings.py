"""What a step measures: means over the ranks, read from the device when they are looked at."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor


def mean_over_ranks(values: Mapping[str, Tensor], world_size: int) -> dict[str, Tensor]:
    """Mean over the ranks; scalars, sorted by name."""
    names = sorted(values)
    stacked = torch.stack([values[name].float() for name in names])
    if world_size > 1:
        dist.all_reduce(stacked)
    stacked = stacked / world_size
    return dict(zip(names, stacked.unbind(), strict=True))


class StepMetrics(Mapping[str, float]):
    """The metrics of one step by name.

    On a GPU they are copied when the step is computed, and the processor goes on to the next one: it waits when
    somebody looks at them.

    Args:
        step: The step that was taken, counted from 1, for errors.
        losses: Loss terms in the order in which they are computed, and `loss`; scalars.
        grad_norm: Norm of the gradients before they are clipped, a scalar.
        lr: Learning rate.
    """

    def __init__(self, step: int, losses: Mapping[str, Tensor], grad_norm: Tensor, lr: float):
        self._step, self._names, self._lr = step, (*losses, "grad_norm"), lr
        on_device = torch.stack([*(value.detach().float() for value in losses.values()), grad_norm.detach().float()])
        self._copied: torch.cuda.Event | None = None
        if on_device.is_cuda:
            self._values = torch.empty(on_device.shape, pin_memory=True)
            self._values.copy_(on_device, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()
        else:
            self._values = on_device
        self._read: dict[str, float] | None = None

    def check(self) -> None:
        """Looks at the metrics.

        Raises:
            FloatingPointError: One of them is not finite; names the step and which.
        """
        self.check_losses()
        if not self.has_finite_gradients():
            raise FloatingPointError(f"step {self._step}: the gradient norm is {self['grad_norm']}")

    def check_losses(self) -> None:
        """Looks at the loss terms alone, and raises as `check` does."""
        for name in self._names:
            if name not in ("loss", "grad_norm") and not math.isfinite(self[name]):
                raise FloatingPointError(f"step {self._step}: the {name} loss is {self[name]}")

    def has_finite_gradients(self) -> bool:
        """Whether the norm of the gradients is finite."""
        return math.isfinite(self["grad_norm"])

    def __getitem__(self, name: str) -> float:
        """One of them."""
        return self._as_read()[name]

    def __iter__(self) -> Iterator[str]:
        """Their names."""
        return iter(self._as_read())

    def __len__(self) -> int:
        """How many there are."""
        return len(self._names) + 1

    def _as_read(self) -> dict[str, float]:
        if self._read is None:
            if self._copied is not None:
                self._copied.synchronize()
            self._read = {**dict(zip(self._names, self._values.tolist(), strict=True)), "lr": self._lr}
        return self._read
