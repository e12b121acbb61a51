"""What trials are compared by: every loss term at fixed timesteps and noise on held-out clips; and a picture."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsync_ray.latentsync.batches import UNET_INPUTS, Batch, Samples, collate, draw
from latentsync_ray.latentsync.config import LOSS_TERMS, LossConfig, ValidationConfig
from latentsync_ray.latentsync.objective import Objective, decode_video
from latentsync_ray.latentsync.readings import mean_over_ranks

_INPUTS = (*UNET_INPUTS, "frames", "mel")


class Validation:
    """The fixed validation set, and this rank's share of it."""

    def __init__(self, config: ValidationConfig, samples: Samples, num_frames: int, rank: int, world_size: int):
        self.config, self.rank, self.world_size = config, rank, world_size
        self.samples = samples.validation_samples(config.num_samples, num_frames, config.seed)

    @torch.no_grad()
    def measure(self, unet: nn.Module, objective: Objective) -> dict[str, float]:
        """Means over all pairs of a sample and a timestep, equal on all ranks.

        Args:
            unet: In eval mode.
            objective: A judging one.
        """
        networks, device = objective.networks, objective.device
        names = [term for term in LOSS_TERMS if networks.can_compute(term)]
        everything = LossConfig(**{term: float(term in names) for term in LOSS_TERMS})
        totals: dict[str, Tensor] = {}
        pairs = [
            (index, timestep)
            for index in range(self.rank, len(self.samples), self.world_size)
            for timestep in self.config.timesteps
        ]
        for start in range(0, len(pairs), self.config.batch_size):
            chunk = pairs[start : start + self.config.batch_size]
            for term, value in objective.terms(unet, self._batch(chunk, device), everything).items():
                totals[term] = totals.get(term, torch.zeros((), device=device)) + value * len(chunk)
        if not totals:  # more ranks than samples
            measured = names if networks.syncnet is None else [*names, "sync_confidence"]
            totals = {term: torch.zeros((), device=device) for term in measured}
        num_pairs = len(self.samples) * len(self.config.timesteps)
        means = mean_over_ranks(totals, self.world_size, divide_by=num_pairs)
        return {f"val/{term}": float(value) for term, value in means.items()}

    @torch.no_grad()
    def preview(self, unet: nn.Module, objective: Objective) -> Tensor:
        """First, middle and last frame of the first sample: masked input, generated, ground truth.

        Args:
            unet: In eval mode.
            objective: Its autoencoder decodes.

        Returns:
            (3 * H, 3 * W, 3) uint8.
        """
        batch = self._batch([(0, self.config.timesteps[0])], objective.device)
        with objective.autocast():
            pred_latents, _ = objective.predict(unet, batch)
            generated = decode_video(objective.networks.vae, pred_latents).float()
        truth = batch.inputs["frames"] / 127.5 - 1
        masks = F.interpolate(batch.inputs["masks"], size=truth.shape[2:])
        columns = torch.cat([truth * masks, generated, truth], dim=4)[0]  # (3, F, H, 3 * W)
        rows = columns[:, [0, columns.shape[1] // 2, -1]].permute(1, 2, 3, 0).flatten(0, 1)
        return rows.add(1).mul(127.5).round().clamp(0, 255).to("cpu", torch.uint8)

    def _batch(self, pairs: list[tuple[int, int]], device: torch.device) -> Batch:
        """Samples by number, each at a timestep."""
        samples = [self.samples[index] for index, _ in pairs]
        draws = [
            draw(self.config.seed, "validation", timestep, index, sample)
            for (index, timestep), sample in zip(pairs, samples, strict=True)
        ]
        names = [name for name in _INPUTS if name in samples[0]]
        return collate(samples, draws, names, self.config.mixed_noise_alpha).to(device)
