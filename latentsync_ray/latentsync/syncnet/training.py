"""Training of StableSyncNet on windows of prepared clips, and its accuracy.

As in LatentSync (https://github.com/bytedance/LatentSync, `scripts/train_syncnet.py` and
`latentsync/data/syncnet_dataset.py`): cosine similarity as the probability that picture and sound belong together,
one half of the weight on pairs that do, the other on sound from another place of the same clip, AdamW. There each
window of a batch makes one pair, in or off sync by chance; here it makes all pairs with the windows of its clip that
the sample holds.
"""

import contextlib
from collections.abc import Iterable, Mapping
from typing import Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from latentsync_ray.latentsync.losses import cosine_loss, visual_input
from latentsync_ray.latentsync.models.autoencoder import Autoencoder, decode_latents, encode_latents, load_autoencoder
from latentsync_ray.latentsync.optimizer import (
    build_optimizer,
    learning_rate,
    load_moments,
    moments,
    set_learning_rate,
)
from latentsync_ray.latentsync.syncnet.config import SyncNetConfig
from latentsync_ray.latentsync.syncnet.model import StableSyncNet

CHUNK_WINDOWS, CHUNK_PICTURES = 16, 16  # so many at a time where no gradient is needed


class Windows(Protocol):
    """Where training samples come from."""

    def train_windows(self, seed: int, step: int, index: int) -> tuple[Tensor, Tensor]:
        """Frames uint8 (W, 3, F, H, W') and mel (W, 1, 80, T) of places in a clip, a function of the arguments."""
        ...


def build_syncnet(config: SyncNetConfig) -> StableSyncNet:
    """Draws a network whose weights are a pure function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        syncnet: StableSyncNet = StableSyncNet(**config.model, resolution=config.resolution)
        return syncnet


class SyncTraining:
    """The training of one process; state and losses are pure functions of the settings and the step."""

    def __init__(
        self, config: SyncNetConfig, windows: Windows, device: torch.device, rank: int = 0, world_size: int = 1
    ):
        self.config, self.windows, self.device = config, windows, device
        self.rank, self.world_size = rank, world_size
        self.num_steps_taken = 0
        self.syncnet = build_syncnet(config).to(device).train()
        self.vae = None if config.vae is None else load_autoencoder(config.vae).to(device)
        if self.vae is not None:
            self.vae.to(memory_format=torch.channels_last)  # a third faster, on CPUs too

        self.optimizer = build_optimizer(self.syncnet.parameters(), config.optimizer)
        self.learning_rate = learning_rate(config.optimizer, config.lr_scheduler)

        self.network: torch.nn.Module = self.syncnet
        if world_size > 1:
            # Looking for unused parameters keeps the gradient buckets as they are at first, see learn/stage.py.
            self.network = DistributedDataParallel(self.syncnet, find_unused_parameters=True)

    def step(self) -> dict[str, float]:
        """Takes one step of AdamW on this rank's share of the global batch.

        Returns:
            The loss of the global batch, the norm of its gradients and the learning rate.

        Raises:
            FloatingPointError: Embeddings or gradients are not finite; names the step and which.
        """
        config, step = self.config, self.num_steps_taken
        lr = self.learning_rate(step)
        set_learning_rate(self.optimizer, lr)
        num_samples = config.batch_size // config.windows_per_clip
        share = num_samples // self.world_size
        size = share // config.gradient_accumulation_steps
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for first in range(self.rank * share, (self.rank + 1) * share, size):
            is_last = first + size == (self.rank + 1) * share
            with self._synchronized(is_last):
                loss = self._loss(step, range(first, first + size)) / config.gradient_accumulation_steps
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        if self.world_size > 1:
            dist.all_reduce(total)
            total /= self.world_size
        grad_norm = torch.nn.utils.clip_grad_norm_(self.syncnet.parameters(), config.optimizer.max_grad_norm)
        if not torch.isfinite(grad_norm):
            raise FloatingPointError(
                f"step {step + 1}: the gradients' norm is {float(grad_norm)}; lower optimizer.lr"
            )
        self.optimizer.step()
        self.num_steps_taken += 1
        return {"loss": float(total), "grad_norm": float(grad_norm), "lr": lr}

    def state(self) -> dict[str, Tensor]:
        """Everything that training goes on from, on the CPU: `model.*`, `optimizer.*`, and the steps taken."""
        tensors = {f"model.{name}": tensor for name, tensor in self.syncnet.state_dict().items()}
        tensors |= dict(moments(self.optimizer, self.syncnet.named_parameters()))
        tensors["num_steps_taken"] = torch.tensor(self.num_steps_taken)
        return {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from what `state` returned."""
        self.syncnet.load_state_dict(model_weights(state))
        load_moments(self.optimizer, self.syncnet.named_parameters(), state, self.config.optimizer)
        self.num_steps_taken = int(state["num_steps_taken"])

    def _loss(self, step: int, indices: Iterable[int]) -> Tensor:
        """Mean over the samples of what all pairs of a sample's pictures and sounds give."""
        samples = [self.windows.train_windows(self.config.seed, step, index) for index in indices]
        frames, mels = (torch.stack(parts).flatten(0, 1).to(self.device) for parts in zip(*samples, strict=True))
        pixels = frames / 127.5 - 1
        if self.vae is not None and step % 2 == 1:
            pixels = _round_trip(self.vae, pixels)
        dtype = getattr(torch, self.config.dtype)
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            embeds = self.network(visual_input(self.syncnet, pixels), mels)
        if not all(torch.isfinite(e).all() for e in embeds):
            raise FloatingPointError(f"step {step + 1}: the embeddings are not finite; lower optimizer.lr")

        # Every picture with every sound of its sample.
        num_windows = self.config.windows_per_clip
        vision_embeds, audio_embeds = (e.unflatten(0, (-1, num_windows)) for e in embeds)
        in_sync = torch.eye(num_windows, device=self.device, dtype=torch.bool).expand(len(samples), -1, -1)
        losses = cosine_loss(
            vision_embeds[:, :, None].expand(-1, -1, num_windows, -1).flatten(0, 2),
            audio_embeds[:, None].expand(-1, num_windows, -1, -1).flatten(0, 2),
            in_sync.flatten(),
        ).view_as(in_sync)
        together, apart = losses[in_sync], losses[~in_sync]
        return torch.lerp(together.mean(), apart.mean(), self.config.off_sync_share)

    def _synchronized(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """Ranks exchange gradients in the last micro-batch's backward pass alone."""
        if isinstance(self.network, DistributedDataParallel) and not is_last:
            return cast(contextlib.AbstractContextManager[None], self.network.no_sync())
        return contextlib.nullcontext()


def model_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's state dict out of a training's state."""
    return {name[len("model.") :]: tensor for name, tensor in state.items() if name.startswith("model.")}


@torch.no_grad()
def sync_accuracy(syncnet: StableSyncNet, clips: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Measures how well a SyncNet tells pairs that belong together from others, at a cosine similarity of 0.5.

    Args:
        syncnet: The network; it is measured in eval mode, in float32, and left in the mode in which it was.
        clips: For each clip frames uint8 (W, 3, F, H, W') and mel (W, 1, 80, T) of W windows, two or more. Each
            window's frames are set against its own sound (in sync) and that of every other (off sync).

    Returns:
        `in_sync_right` and `off_sync_right`, the shares told rightly; `balanced_accuracy`, their mean;
        `in_sync_mean_cosine` and `off_sync_mean_cosine`.
    """
    was_training = syncnet.training
    syncnet.eval()
    in_sync, off_sync = [], []
    for frames, mels in clips:
        embeds = [
            syncnet(visual_input(syncnet, chunk.to(syncnet.device) / 127.5 - 1), sounds.to(syncnet.device))
            for chunk, sounds in zip(
                torch.split(frames, CHUNK_WINDOWS), torch.split(mels, CHUNK_WINDOWS), strict=True
            )
        ]
        vision_embeds, audio_embeds = (torch.cat(parts) for parts in zip(*embeds, strict=True))
        similarity = (vision_embeds @ audio_embeds.T).cpu()
        own = torch.eye(len(similarity), dtype=torch.bool)
        in_sync.append(similarity[own])
        off_sync.append(similarity[~own])
    syncnet.train(was_training)
    together, apart = torch.cat(in_sync), torch.cat(off_sync)
    right_together, right_apart = (together > 0.5).float().mean().item(), (apart < 0.5).float().mean().item()
    return {
        "balanced_accuracy": (right_together + right_apart) / 2,
        "in_sync_right": right_together,
        "off_sync_right": right_apart,
        "in_sync_mean_cosine": together.mean().item(),
        "off_sync_mean_cosine": apart.mean().item(),
    }


@torch.no_grad()
def _round_trip(vae: Autoencoder, pixels: Tensor) -> Tensor:
    """Encodes and decodes videos (B, 3, F, H, W), as the frames that the UNet makes are decoded."""
    pictures = pixels.transpose(1, 2).flatten(0, 1)
    decoded = [decode_latents(vae, encode_latents(vae, part)) for part in torch.split(pictures, CHUNK_PICTURES)]
    return torch.cat(decoded).view(len(pixels), -1, *pictures.shape[1:]).transpose(1, 2)
