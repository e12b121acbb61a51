"""What trials are compared by: every loss term at fixed timesteps and noise on held-out clips; and a picture."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from latentsync_ray.core.terms import Terms
from latentsync_ray.latentsync.batches import UNET_INPUTS, Batch, Samples, collate, draw
from latentsync_ray.latentsync.config import LOSS_TERMS, LossConfig, ValidationConfig
from latentsync_ray.latentsync.objective import Objective, decode_video

MOST_SYNC_LOSS = 5.0
"""Of one pair. Where SyncNet sees no similarity at all, torch cuts the loss off at 100 and less decides nothing: one
pair of 48 then moves the mean by 2, more than all that is compared. 5 is the loss of a similarity of 0.007."""
_INPUTS = (*UNET_INPUTS, "frames", "mel")


class Validation:
    """The fixed validation set, and this rank's share of it."""

    def __init__(self, config: ValidationConfig, samples: Samples, num_frames: int, rank: int, world_size: int):
        self.config, self.rank, self.world_size = config, rank, world_size
        self.samples = samples.validation_samples(config.num_samples, num_frames, config.seed)

    @torch.no_grad()
    def measure(self, unet: nn.Module, objective: Objective) -> Terms:
        """The terms of each pair of a sample and a timestep, equal on all ranks; a metric is their mean.

        Args:
            unet: In eval mode.
            objective: A judging one.
        """
        networks, device = objective.networks, objective.device
        losses = [term for term in LOSS_TERMS if networks.can_compute(term)]
        everything = LossConfig(**{term: float(term in losses) for term in LOSS_TERMS})
        names = losses if networks.syncnet is None else [*losses, "sync_confidence"]
        pairs = [(index, timestep) for index in range(len(self.samples)) for timestep in self.config.timesteps]
        values = torch.zeros(len(names), len(pairs), device=device)
        own = list(range(self.rank, len(pairs), self.world_size))
        for start in range(0, len(own), self.config.batch_size):
            numbers = own[start : start + self.config.batch_size]
            batch = self._batch([pairs[number] for number in numbers], device)
            for number, terms in zip(numbers, objective.terms_of_each(unet, batch, everything), strict=True):
                if "sync" in terms:
                    terms["sync"] = terms["sync"].clamp(max=MOST_SYNC_LOSS)
                values[:, number] = torch.stack([terms[name].float() for name in names])
        if self.world_size > 1:
            dist.all_reduce(values)  # each pair is one rank's, and zero with the others
        clips = [self.samples[index].get("name", str(index)) for index, _ in pairs]
        groups = [clip.rpartition("/")[0] or clip for clip in clips]
        columns = values.tolist()
        return Terms(clips, groups, {f"val/{name}": column for name, column in zip(names, columns, strict=True)})

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
