"""Whether a stage fits on a GPU, its activations kept or computed again: found out before anything is trained."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from latentsync_ray.config.errors import UserError
from latentsync_ray.latentsync.batches import Batch
from latentsync_ray.latentsync.config import LatentSyncStage
from latentsync_ray.latentsync.flops import StepFlops
from latentsync_ray.latentsync.models.unet import UNet3DConditionModel, select_trainable
from latentsync_ray.latentsync.networks import narrow_frozen_layers
from latentsync_ray.latentsync.objective import Objective, weighted_sum

MARGIN = 0.1
"""Share of the free memory that is left for what a step does not show: validation, gaps between tensors."""
_MOMENTS_BYTES, _AVERAGE_BYTES, _BUCKET_BYTES = 8, 4, 4
"""Of each trained number: AdamW's moments, the average of weights, the buckets in which ranks exchange gradients."""


@dataclass(frozen=True)
class MeasuredStep:
    """One forward and backward pass."""

    seconds: float
    """Of the second one; the first loads libraries."""
    peak_bytes: int
    """Most memory at any time, with what the optimizer will take."""
    num_flops: float
    """Of the model, for one micro-batch."""


@dataclass(frozen=True)
class Probed:
    """What was found out about a stage."""

    checkpointing: bool
    """Whether activations are computed again."""
    step: MeasuredStep
    """As it will be."""
    line: str
    """For the user."""


def decide(
    stage: str,
    asked: bool | Literal["auto"],
    measure: Callable[[bool], MeasuredStep | None],
    free_bytes: int,
) -> Probed:
    """Decides whether a stage computes its activations again.

    Args:
        stage: Its name, for the line.
        asked: The stage's `gradient_checkpointing`.
        measure: Takes a step with checkpointing or without; None if the memory does not suffice.
        free_bytes: What the step may take at most, with what is held already.

    Raises:
        UserError: A step does not fit.
    """
    limit = (1 - MARGIN) * free_bytes
    without = None if asked is True else measure(False)
    if without is not None and (asked is False or without.peak_bytes <= limit):
        reason = "it is off" if without.peak_bytes <= limit else "it is off as asked, with little memory to spare"
        line = f"{stage}: {_told(without, free_bytes)} without gradient checkpointing, so {reason}"
        return Probed(False, without, line)
    if asked is False:
        raise _too_large(stage, f"{_gib(free_bytes)} GiB do not suffice without gradient checkpointing")
    having = measure(True)
    if having is None or having.peak_bytes > free_bytes:
        raise _too_large(stage, f"{_gib(free_bytes)} GiB do not suffice, even with gradient checkpointing")
    before = "as asked"
    if asked == "auto":
        before = "since it does not fit without"
        if without is not None:
            before += f" ({_gib(without.peak_bytes)} GiB)"
    return Probed(True, having, f"{stage}: {_told(having, free_bytes)} with gradient checkpointing, {before}")


def measure_step(
    config: LatentSyncStage, objective: Objective, batch: Batch, checkpointing: bool, world_size: int
) -> MeasuredStep | None:
    """Takes two forward and backward passes of a stage with new weights; None if the memory does not suffice.

    Args:
        config: The stage's settings.
        objective: Its loss terms.
        batch: A micro-batch, on the device.
        checkpointing: Whether activations are computed again.
        world_size: Number of ranks, which exchange gradients if there are several.
    """
    try:
        return _measure_step(config, objective, batch, checkpointing, world_size)
    except torch.OutOfMemoryError:
        return None
    finally:
        if objective.device.type == "cuda":
            torch.cuda.empty_cache()


def _measure_step(
    config: LatentSyncStage, objective: Objective, batch: Batch, checkpointing: bool, world_size: int
) -> MeasuredStep:
    device = objective.device
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        unet = UNet3DConditionModel(**config.model).train()
    trained = sum(parameter.numel() for _, parameter in select_trainable(unet, config.trainable_modules))
    if objective.dtype != torch.float32:
        narrow_frozen_layers(unet, objective.dtype)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    flops = StepFlops()
    with flops:
        loss = weighted_sum(objective.terms(unet, batch, config.loss), config.loss)
        flops.in_backward = True
        loss.backward()  # type: ignore[no-untyped-call]
    unet.zero_grad(set_to_none=True)
    started = _now(device)
    weighted_sum(objective.terms(unet, batch, config.loss), config.loss).backward()  # type: ignore[no-untyped-call]
    seconds = _now(device) - started
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    per_number = _MOMENTS_BYTES + _AVERAGE_BYTES * (config.ema_decay > 0) + _BUCKET_BYTES * (world_size > 1)
    return MeasuredStep(seconds, peak + per_number * trained, flops.total)


def free_bytes(device: torch.device) -> int:
    """What this process may hold of a GPU's memory, with what it holds already."""
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _told(step: MeasuredStep, free_bytes: int) -> str:
    return f"a step takes {step.seconds:.2f} s and {_gib(step.peak_bytes)} of {_gib(free_bytes)} GiB"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f}"


def _too_large(stage: str, reason: str) -> UserError:
    return UserError(
        f"{stage}.batch_size: a step must fit on the GPU, and {reason}; lower it, raise gradient_accumulation_steps,"
        " or leave gradient_checkpointing at auto"
    )
