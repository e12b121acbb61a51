"""Batches: what a stage takes of a sample, in the order of the global batch, read one step ahead."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from latentsync_ray.latentsync.batches import UNET_INPUTS, BatchPlan, BatchReader, used_inputs
from latentsync_ray.latentsync.config import LossConfig


class Numbered:
    """Samples that say for which step and place they are, and in which thread they were made."""

    def __init__(self) -> None:
        self.read: list[tuple[int, int]] = []
        self.threads: set[str] = set()

    def train_sample(self, seed: int, global_step: int, index: int, num_frames: int) -> dict[str, Any]:
        if global_step == 13:
            raise OSError("no such clip")
        self.read.append((global_step, index))
        self.threads.add(threading.current_thread().name)
        return {"latents": torch.full((1, num_frames, 1, 1), 100.0 * global_step + index), "name": "clip"}

    def validation_samples(self, num_samples: int, num_frames: int, seed: int) -> list[dict[str, Any]]:
        return []


def plan(indices: range, batch_size: int) -> BatchPlan:
    return BatchPlan(0, 2, indices, batch_size, ("latents",), 1.0)


def test_a_stage_takes_only_what_its_loss_needs() -> None:
    assert used_inputs(LossConfig()) == UNET_INPUTS
    assert set(used_inputs(LossConfig(sync=1))) == {*UNET_INPUTS, "mel"}
    assert set(used_inputs(LossConfig(lpips=1, trepa=1))) == {*UNET_INPUTS, "frames"}


def test_batches_are_a_rank_s_share_in_order_and_come_from_the_reader_s_thread() -> None:
    samples = Numbered()
    reader = BatchReader(samples, torch.device("cpu"))
    reader.follow(plan(range(4, 8), 2))
    for step in (0, 1, 5):  # 5 was not read ahead
        batches = reader.batches(step)
        assert [batch.inputs["latents"][:, 0, 0, 0, 0].tolist() for batch in batches] == [
            [100.0 * step + 4, 100.0 * step + 5],
            [100.0 * step + 6, 100.0 * step + 7],
        ]
        assert [tuple(batch.noise.shape) for batch in batches] == [(2, 1, 2, 1, 1)] * 2
        assert set(batches[0].inputs) == {"latents"}
    assert len(samples.threads) == 1 and "reader" in samples.threads.pop()


def test_draws_do_not_depend_on_the_ranks_or_micro_batches() -> None:
    def drawn(*plans: BatchPlan) -> torch.Tensor:
        noises = []
        for one in plans:
            reader = BatchReader(Numbered(), torch.device("cpu"))
            reader.follow(one)
            noises += [batch.noise for batch in reader.batches(3)]
        return torch.cat(noises)

    whole = drawn(plan(range(4), 4))
    assert torch.equal(whole, drawn(plan(range(2), 1), plan(range(2, 4), 2)))
    assert len({float(noise[0, 0, 0, 0]) for noise in whole}) == 4


def test_another_plan_is_followed_at_once_and_a_fault_of_the_reader_is_told() -> None:
    reader = BatchReader(Numbered(), torch.device("cpu"))
    reader.follow(plan(range(2), 2))
    reader.batches(0)
    reader.follow(plan(range(3), 3))
    assert [len(batch) for batch in reader.batches(1)] == [3]
    with pytest.raises(OSError, match="no such clip"):
        reader.batches(13)
