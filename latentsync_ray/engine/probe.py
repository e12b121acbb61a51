"""How long steps take on this machine: a few of each stage, without Ray and without keeping anything."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

from latentsync_ray.config.loading import stage_config
from latentsync_ray.core.forecast import StageTimes
from latentsync_ray.core.segment import Segment
from latentsync_ray.core.training import Inputs, Notes, TrainingSetup, load_training
from latentsync_ray.engine.determinism import make_deterministic

NUM_STEPS = 4
"""Steps of each stage; the first one, which loads libraries, does not count."""


def probe(
    inputs: Inputs[Any],
    notes: Notes,
    segments: Iterable[Segment],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, StageTimes]:
    """Takes a few steps of each stage and validates once, as a worker does.

    A group of several workers is measured as one that takes all of their samples, and counts as that much faster.

    Args:
        inputs: What the training reads, found and checked.
        notes: Where figures that are costly to measure may be kept.
        segments: One of each stage, for its settings.
        clock: Seconds.

    Returns:
        By stage.

    Raises:
        UserError: A stage cannot be trained here.
    """
    make_deterministic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    setup = TrainingSetup(inputs.recipe, inputs.recipe.seed, device)
    training = load_training(inputs.recipe.training)(setup)
    training.rehearse(notes)
    found: dict[str, StageTimes] = {}
    for segment in segments:
        config = stage_config(inputs.recipe, segment.stage, segment.config)
        torch.set_num_threads(config.num_threads)
        training.build(segment.stage, config, None, "")
        stepped = []
        for step in range(NUM_STEPS):
            dict(training.step(step, step))  # waits for a device that is still at it
            stepped.append(clock())
        training.validate()
        validated = clock()
        state = training.state()
        copied = clock()
        found[segment.stage] = StageTimes(
            train_seconds=(stepped[-1] - stepped[0]) / (NUM_STEPS - 1) / segment.num_workers,
            boundary_seconds=(validated - stepped[-1]) / segment.num_workers + copied - validated,
            state_bytes=sum(tensor.numel() * tensor.element_size() for tensor in state.values()),
        )
    return found
