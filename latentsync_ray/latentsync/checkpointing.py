"""Which stages compute their activations again in the backward pass: decided once for each, by a probe on the GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from latentsync_ray.config.plain import Plain, plain
from latentsync_ray.core.hashing import digest
from latentsync_ray.core.training import Notes
from latentsync_ray.latentsync.batches import Batch
from latentsync_ray.latentsync.config import LOSS_TERMS, LatentSyncStage
from latentsync_ray.latentsync.objective import Objective
from latentsync_ray.latentsync.probe import MeasuredStep, Probed, decide, free_bytes, measure_step
from latentsync_ray.store import DamagedEntryError

Measure = Callable[[bool], MeasuredStep | None]


class Checkpointing:
    """Decides for each stage, and remembers.

    On a CPU nothing is probed and `auto` is off: memory is there to be paged, and a probe would cost a small search
    more than its first segments.

    Args:
        device: Where steps are taken.
        world_size: Number of ranks.
        common: What else memory depends on, the same for all stages.
    """

    def __init__(self, device: torch.device, world_size: int, common: Plain):
        self._device, self._world_size, self._common = device, world_size, common
        self._probed: dict[str, Probed] = {}
        self.notes: Notes | None = None
        """Where measurements are kept, so that other workers on such a GPU need not repeat them."""

    def of(
        self, stage: str, config: LatentSyncStage, objective: Callable[[bool], Objective], batch: Callable[[], Batch]
    ) -> Probed | None:
        """What was found out about a stage; None on a CPU.

        Args:
            stage: Its name.
            config: Its settings.
            objective: Makes its loss terms, with checkpointing or without.
            batch: Makes a micro-batch, on the device.

        Raises:
            UserError: A step does not fit on the GPU.
        """
        if self._device.type != "cuda":
            return None

        def measure(checkpointing: bool) -> MeasuredStep | None:
            return measure_step(config, objective(checkpointing), batch(), checkpointing, self._world_size)

        key = self._key(config)
        if key not in self._probed:
            asked = config.gradient_checkpointing
            self._probed[key] = decide(stage, asked, self._noted(key, measure), free_bytes(self._device))
        return self._probed[key]

    def _key(self, config: LatentSyncStage) -> str:
        """Names what time and memory of a step depend on."""
        properties = torch.cuda.get_device_properties(self._device)
        shape: list[Plain] = [
            plain(config.model),
            plain(config.trainable_modules),
            [term for term in LOSS_TERMS if getattr(config.loss, term) > 0],
            config.batch_size // self._world_size // config.gradient_accumulation_steps,
            config.dtype,
            config.ema_decay > 0,
            config.gradient_checkpointing,
        ]
        return digest(
            [shape, self._common, self._world_size, properties.name, properties.total_memory, torch.__version__]
        )

    def _noted(self, key: str, measure: Measure) -> Measure:
        """The same measurement, kept in the notes."""
        notes = self.notes
        if notes is None:
            return measure

        def noted(checkpointing: bool) -> MeasuredStep | None:
            name = f"probes/{key}-{'with' if checkpointing else 'without'}.json"
            try:
                known: Any = notes.read_json(name)
            except DamagedEntryError as error:
                print(f"{error}; it is measured again", flush=True)
                known = None
            if known is None:
                step = measure(checkpointing)
                known = {"step": None if step is None else asdict(step)}
                notes.write_json(name, known)
            return None if known["step"] is None else MeasuredStep(**known["step"])

        return noted
