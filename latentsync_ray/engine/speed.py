"""How fast a segment was trained: samples a second, share of the device's peak, memory."""

from __future__ import annotations

import resource

import torch

from latentsync_ray.core.record import Speed
from latentsync_ray.core.training import StepWork


def reset_peak_memory() -> None:
    """From now on the most memory at any time is noted; without a GPU it is that of the process since its start."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_bytes() -> int:
    """Most memory that tensors held on the GPU at any time; without one, that the process held."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def segment_speed(work: StepWork | None, num_steps: int, train_seconds: float) -> Speed:
    """Figures of a segment.

    Args:
        work: What a step takes; None if the training does not know.
        num_steps: Steps that were taken.
        train_seconds: How long they took.
    """
    if work is None or num_steps == 0:
        return Speed(peak_memory_bytes())
    per_second = num_steps / train_seconds
    mfu = None
    if work.num_flops is not None and work.peak_flops is not None:
        mfu = work.num_flops * per_second / work.peak_flops
    return Speed(peak_memory_bytes(), work.num_samples * per_second, mfu)
