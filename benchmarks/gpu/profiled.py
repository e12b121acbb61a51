"""A profile of two steps: the longest kernels, launches, how busy the GPU is, and its gaps."""

from __future__ import annotations

from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.steps import Job, Way, _take, built

NUM_KERNELS = 25
GAP_MICROSECONDS = 5
"""A shorter gap between two kernels is none."""


def profile_steps(job: Job, stage: str, way: Way) -> dict[str, Any]:
    """Figures of two steps; on a CPU, which has no kernels, the longest operators alone."""
    stages = built(job, stage, way)
    _take(stages, 0, job.hash_steps)
    cuda = job.device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiled:
        _take(stages, job.hash_steps, 2)
    averages = profiled.key_averages()
    device = "self_device_time_total" if cuda else "self_cpu_time_total"
    longest = sorted(averages, key=lambda event: -getattr(event, device))[:NUM_KERNELS]
    kernels = [
        (event.time_range.start, event.time_range.end)
        for event in profiled.events()
        if event.device_type == DeviceType.CUDA
    ]
    return {
        "longest": [
            {"name": event.key[:120], "calls": event.count, "milliseconds": round(getattr(event, device) / 1e3, 3)}
            for event in longest
        ],
        **busy_figures(kernels),
    }


def busy_figures(kernels: list[tuple[float, float]]) -> dict[str, Any]:
    """How busy a device is from the first to the last kernel.

    Args:
        kernels: Start and end of each, in microseconds.

    Returns:
        `launches`; `busy_share`, of the whole time; `gaps`, how many are longer than a few microseconds; `gap_share`.
    """
    if not kernels:
        return {"launches": 0, "busy_share": None, "gaps": 0, "gap_share": None}
    kernels = sorted(kernels)
    first, reached = kernels[0]
    gaps = []
    for start, end in kernels[1:]:
        if start - reached > GAP_MICROSECONDS:
            gaps.append(start - reached)
        reached = max(reached, end)
    whole = reached - first
    idle, at = 0.0, kernels[0][1]
    for start, end in kernels[1:]:
        idle += max(0.0, start - at)
        at = max(at, end)
    return {
        "launches": len(kernels),
        "busy_share": 1 - idle / whole,
        "gaps": len(gaps),
        "gap_share": sum(gaps) / whole,
    }
