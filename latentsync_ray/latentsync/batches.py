"""What goes into a training step: samples, timesteps and noise, drawn and collated ahead of the step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from latentsync_ray.latentsync.config import LossConfig
from latentsync_ray.latentsync.diffusion import mixed_noise

Sample = Mapping[str, Any]

NUM_TRAIN_TIMESTEPS = 1000
UNET_INPUTS = ("latents", "masks", "masked_latents", "ref_latents", "audio_features")
"""What of a sample the UNet takes, and what it is to predict."""
_LOSS_INPUTS = {"sync": "mel", "lpips": "frames", "trepa": "frames"}
"""Loss term -> what of a sample it needs besides."""


class Samples(Protocol):
    """Where training and validation samples come from: pure functions of their arguments."""

    def train_sample(self, seed: int, global_step: int, index: int, num_frames: int) -> Sample:
        """One sample of the global batch."""
        ...

    def validation_samples(self, num_samples: int, num_frames: int, seed: int) -> Sequence[Sample]:
        """The fixed validation set."""
        ...


@dataclass(frozen=True)
class Draw:
    """What is drawn for a sample."""

    timestep: int
    """From 0 to 999."""
    shared_noise: Tensor
    """(C, F, h, w) float32, of which frame 0 serves all frames."""
    noise: Tensor
    """(C, F, h, w) float32, independent."""


@dataclass(frozen=True)
class Batch:
    """Samples that go through the networks together."""

    inputs: Mapping[str, Tensor]
    """A sample's tensors by name, stacked."""
    timesteps: Tensor
    """(B,) int64 in [0, 1000)."""
    noise: Tensor
    """(B, C, F, h, w) float32, as it is added to the latents."""

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.timesteps)

    def __getitem__(self, chosen: slice) -> Batch:
        """Some of the samples."""
        inputs = {name: tensor[chosen] for name, tensor in self.inputs.items()}
        return Batch(inputs, self.timesteps[chosen], self.noise[chosen])

    def pinned(self) -> Batch:
        """A copy in page-locked memory, from which a GPU copies while the processor goes on."""
        inputs = {name: tensor.pin_memory() for name, tensor in self.inputs.items()}
        return Batch(inputs, self.timesteps.pin_memory(), self.noise.pin_memory())

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; the processor does not wait for the copies of a pinned one."""
        inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in self.inputs.items()}
        return Batch(inputs, self.timesteps.to(device, non_blocking=True), self.noise.to(device, non_blocking=True))


def used_inputs(loss: LossConfig) -> tuple[str, ...]:
    """Names of a sample's tensors that a stage with such a loss takes."""
    needed = {name for term, name in _LOSS_INPUTS.items() if getattr(loss, term) > 0}
    return (*UNET_INPUTS, *sorted(needed))


def collate(samples: Sequence[Sample], draws: Sequence[Draw], names: Iterable[str], noise_alpha: float) -> Batch:
    """Stacks samples and what was drawn for them.

    Args:
        samples: At least one.
        draws: One for each of them.
        names: The tensors to take of each sample.
        noise_alpha: Share of the noise that is common to the frames, see `mixed_noise`; 0 for none.
    """
    inputs = {name: torch.stack([sample[name] for sample in samples]) for name in names}
    noise = torch.stack([draw.noise for draw in draws])
    if noise_alpha > 0:
        noise = mixed_noise(torch.stack([draw.shared_noise for draw in draws]), noise, noise_alpha)
    return Batch(inputs, torch.tensor([draw.timestep for draw in draws]), noise)


def draw(seed: int, purpose: str, step: int, index: int, sample: Sample) -> Draw:
    """A sample's timestep and noise, on the CPU, so that they are the same on every device.

    In validation the step is the timestep.
    """
    generator = torch.Generator().manual_seed(derived_seed(seed, purpose, step, index))
    drawn = int(torch.randint(NUM_TRAIN_TIMESTEPS, (), generator=generator))
    shared, independent = torch.randn(2, *sample["latents"].shape, generator=generator)
    return Draw(step if purpose == "validation" else drawn, shared, independent)


def derived_seed(*key: object) -> int:
    """63 bits that depend on all parts of the key."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class BatchPlan:
    """Which batches a rank takes of a step."""

    seed: int
    """Of samples, timesteps and noise."""
    num_frames: int
    """Frames of a sample."""
    indices: range
    """This rank's share of the global batch."""
    batch_size: int
    """Samples of a micro-batch."""
    inputs: tuple[str, ...]
    """The tensors that the stage takes of each sample."""
    noise_alpha: float
    """Share of the noise that is common to the frames."""


class BatchReader:
    """Reads a step's batches, and checks the files, while the step before it is computed."""

    def __init__(self, samples: Samples, device: torch.device):
        self._samples, self._device = samples, device
        self._thread = ThreadPoolExecutor(1, "reader", initializer=self._use_device)
        self._plan: BatchPlan | None = None
        self._ahead: tuple[int, Future[list[Batch]]] | None = None

    def follow(self, plan: BatchPlan) -> None:
        """Has the batches of the following steps made by a plan."""
        if plan != self._plan:
            self._plan, self._ahead = plan, None

    def batches(self, global_step: int) -> list[Batch]:
        """A step's micro-batches, on the device or on their way to it."""
        assert self._plan is not None
        step, batches = self._ahead or (None, None)
        if batches is None or step != global_step:
            batches = self._thread.submit(self._read, self._plan, global_step)
        self._ahead = global_step + 1, self._thread.submit(self._read, self._plan, global_step + 1)
        return [batch.to(self._device) for batch in batches.result()]

    def first(self, plan: BatchPlan) -> Batch:
        """The first micro-batch of step 0, on the device."""
        return self._thread.submit(self._read, plan, 0).result()[0].to(self._device)

    def _read(self, plan: BatchPlan, global_step: int) -> list[Batch]:
        batches = []
        for first in plan.indices[:: plan.batch_size]:
            indices = range(first, first + plan.batch_size)
            samples = [self._samples.train_sample(plan.seed, global_step, i, plan.num_frames) for i in indices]
            draws = [
                draw(plan.seed, "train", global_step, i, sample) for i, sample in zip(indices, samples, strict=True)
            ]
            batch = collate(samples, draws, plan.inputs, plan.noise_alpha)
            batches.append(batch.pinned() if self._device.type == "cuda" else batch)
        return batches

    def _use_device(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
