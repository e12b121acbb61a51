"""What each process of a SyncNet's training runs under Ray Train."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TypedDict

import ray.train
import ray.train.torch
import torch
from ray.util.queue import Queue
from safetensors.torch import load_file, save_file

from latentsync_ray.engine.determinism import make_deterministic
from latentsync_ray.latentsync.data.clips import PreparedClips
from latentsync_ray.latentsync.syncnet.config import SyncNetConfig
from latentsync_ray.latentsync.syncnet.training import SyncTraining, sync_accuracy
from latentsync_ray.latentsync.syncnet.windows import SyncWindows, held_out_windows

STATE_FILE = "state.safetensors"
"""What a checkpoint of Ray Train holds: `SyncTraining.state`."""


class LoopConfig(TypedDict):
    """What Ray Train hands to `train_loop`."""

    config: SyncNetConfig
    """The training."""
    progress: Queue
    """For `(step, metrics)` of every step."""


def train_loop(settings: LoopConfig) -> None:
    """Trains from the last checkpoint to the end; validates and writes a checkpoint at intervals."""
    config = settings["config"]
    make_deterministic()
    torch.set_num_threads(config.num_threads)

    context = ray.train.get_context()
    rank = context.get_world_rank()
    clips = PreparedClips.open(config.data.folder)
    windows = SyncWindows(clips, config.data.num_frames, config.windows_per_clip)
    training = SyncTraining(config, windows, ray.train.torch.get_device(), rank, context.get_world_size())
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            training.load_state(load_file(Path(folder) / STATE_FILE))

    while training.num_steps_taken < config.num_steps:
        metrics = training.step()
        step = training.num_steps_taken
        at_boundary = step % config.validate_every_steps == 0 or step == config.num_steps
        if rank == 0:
            if at_boundary:
                held_out = held_out_windows(clips, config.data.num_frames, config.num_validation_windows)
                metrics |= sync_accuracy(training.syncnet, held_out)
            settings["progress"].put((step, metrics))
        if at_boundary:
            _report(training, {"step": step, **metrics})


def _report(training: SyncTraining, metrics: dict[str, float]) -> None:
    """Hands Ray Train the metrics and a checkpoint, both from rank 0; the others have to come here too."""
    if training.rank != 0:
        ray.train.report({})
        return
    with tempfile.TemporaryDirectory() as folder:
        save_file(training.state(), Path(folder) / STATE_FILE)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
