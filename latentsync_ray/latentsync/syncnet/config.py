"""Typed configuration of a SyncNet's training, with the rules of every value, and how it is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from latentsync_ray.config.arguments import argument_value, split_argument
from latentsync_ray.config.errors import Complaint
from latentsync_ray.config.schema import checked, merged, merged_into, nested, resolve_paths
from latentsync_ray.config.yamlfiles import read_yaml
from latentsync_ray.latentsync.data.config import DataConfig
from latentsync_ray.latentsync.optimizer import LRSchedulerConfig, OptimizerConfig

_FOLDERS, _SOURCES = ("data.folder",), ("vae", "audio_encoder")


@dataclass(frozen=True)
class SyncNetConfig:
    """A training of StableSyncNet on prepared clips."""

    data: DataConfig
    """The prepared clips, and how many frames SyncNet sees at once."""
    model: dict[str, Any]
    """`audio_encoder` and `visual_encoder`, as in LatentSync's `model:` section."""
    output: str
    """Folder of the trained network, for `components.syncnet`; relative to the working directory. Checkpoints and
    TensorBoard logs are kept in a folder beside it, of the same name with `.training` added."""
    resolution: int | None = None
    """Height and width of the whole frames that SyncNet sees; null takes the clips' own."""
    vae: str | None = None
    """Every other step shows frames that went through this autoencoder, as those that SyncNet will judge did; null
    shows the clips' own alone. Synthetic clips are prepared with it."""
    audio_encoder: str | None = None
    """Whisper encoder (transformers), for the preparation of synthetic clips alone."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimizer."""
    lr_scheduler: LRSchedulerConfig = field(default_factory=LRSchedulerConfig)
    """The learning-rate schedule."""
    batch_size: int = 256
    """Windows of frames a step, over all workers and micro-batches."""
    windows_per_clip: int = 2
    """So many windows come from different places of one clip; each is set against its own sound and the others'."""
    off_sync_share: float = 0.5
    """Share of the loss on off-sync pairs. Embeddings are never below 0, so similarities err upwards, for which more
    than one half makes up."""
    gradient_accumulation_steps: int = 1
    """Micro-batches of a worker's share, one after another: less memory, the same step."""
    num_steps: int = 1000
    """Steps of the optimizer."""
    validate_every_steps: int = 100
    """Accuracy and checkpoint come at multiples of this many steps, and at the end."""
    num_validation_windows: int = 256
    """Most windows of the held-out clips on which the accuracy is measured."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 trains under autocast."""
    num_workers: int = 1
    """Processes that train together (the world size)."""
    num_threads: int = 1
    """CPU threads of each process; the last bits of a sum depend on it."""
    use_gpu: bool = False
    """One GPU for each process."""
    seed: int = 0
    """Initial weights and samples are pure functions of it."""

    def complaints(self) -> Iterator[Complaint]:
        """The rules that these values break."""
        counts = ("batch_size", "gradient_accumulation_steps", "num_steps", "validate_every_steps")
        for name in (*counts, "num_workers", "num_threads"):
            if getattr(self, name) < 1:
                yield name, "must be at least 1", "raise it"
        for name in ("windows_per_clip", "num_validation_windows"):
            if getattr(self, name) < 2:
                yield name, "must be at least 2", "sound from another place of the same clip is what is off sync"
        channels = 3 * self.data.num_frames
        visual_encoder = self.model.get("visual_encoder")
        if isinstance(visual_encoder, dict) and visual_encoder.get("in_channels", channels) != channels:
            rule = f"must be 3 * data.num_frames ({channels})"
            yield "model.visual_encoder.in_channels", rule, "change either, so that every frame has its three colours"
        if not 0 < self.off_sync_share < 1:
            yield "off_sync_share", "must be above 0 and below 1", "LatentSync's is 0.5"
        if self.resolution is not None and (self.resolution < 2 or self.resolution % 2):
            yield "resolution", "must be even and at least 2", "SyncNet sees the lower half of each frame"
        shares = self.num_workers * self.gradient_accumulation_steps * self.windows_per_clip
        if shares >= 1 and self.batch_size % shares:
            rule = f"must be a multiple of num_workers * gradient_accumulation_steps * windows_per_clip ({shares})"
            yield "batch_size", rule, "change either, so that all micro-batches are equal"
        for name in ("vae", "audio_encoder"):
            if self.data.synthetic is not None and getattr(self, name) is None:
                yield name, "must be given, since data.synthetic is", "name a folder or hub id"
        if self.seed < 0:
            yield "seed", "must not be negative", "0 will do"


def load_syncnet(file: str | Path, arguments: list[str]) -> SyncNetConfig:
    """Reads the file of a SyncNet's training, with `key=value` arguments applied.

    Raises:
        UserError: The file is missing, an argument is no `key=value`, or a value breaks a rule.
    """
    file = Path(file)
    node = merged(SyncNetConfig, read_yaml(file), {"": file})
    resolve_paths(node, file.parent, _FOLDERS, _SOURCES)
    config = checked(SyncNetConfig, node, {"": file})
    if not arguments:
        return config
    for argument in arguments:
        key, text = split_argument(argument)
        value = argument_value(SyncNetConfig, key, text, key)
        node = merged_into(node, nested(key, value), {"": Path(f"argument {key}")}, named=True)
    resolve_paths(node, Path.cwd(), _FOLDERS, _SOURCES)
    return checked(SyncNetConfig, node, {"": Path("argument")})
