"""A SyncNet's training from its settings to the trained network: inputs, Ray Train's run, progress, results."""

from __future__ import annotations

import dataclasses
import json
import queue
import shutil
from dataclasses import dataclass
from pathlib import Path

# Ray reads these when it is imported; `cluster` sets more.
import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer
from ray.util.queue import Queue
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import load_file
from torch.utils.tensorboard import SummaryWriter

from latentsync_ray.cluster.connection import cluster
from latentsync_ray.config.errors import UserError
from latentsync_ray.core.atomic import new_folder
from latentsync_ray.core.hashing import digest
from latentsync_ray.core.segment import Metrics
from latentsync_ray.latentsync.data.clips import PreparedClips
from latentsync_ray.latentsync.data.media import num_mel_columns
from latentsync_ray.latentsync.inputs import drawn_clips, source_fingerprint
from latentsync_ray.latentsync.losses import visual_input
from latentsync_ray.latentsync.syncnet.config import SyncNetConfig
from latentsync_ray.latentsync.syncnet.training import build_syncnet, model_weights
from latentsync_ray.latentsync.syncnet.windows import SyncWindows, held_out_windows
from latentsync_ray.latentsync.syncnet.worker import STATE_FILE, LoopConfig, train_loop

SCORE = "balanced_accuracy"
FIGURES_FILE = "figures.json"
"""Beside the trained network: how it was trained, and how good it is."""
MAX_RESTARTS = 2
"""How often the processes are started again, from the last checkpoint, after one of them has failed."""
# What does not change the numbers that a training gives, beyond the last bits of a sum.
_NOT_IN_IDENTITY = ("data", "output", "vae", "audio_encoder", "num_workers", "num_threads", "use_gpu")


@dataclass(frozen=True)
class Figures:
    """How a network was trained, and how good it is."""

    training: str
    """Name of all that decided the result."""
    num_steps: int
    """Steps of the whole training."""
    metrics: Metrics
    """Loss and accuracies (`training.sync_accuracy`) at the best step, and `step`."""


def run_syncnet(config: SyncNetConfig) -> int:
    """Trains a SyncNet, or goes on with it, and writes the network of the best validation accuracy.

    Returns:
        0.

    Raises:
        UserError: Something is wrong with what the user gave, or the training has failed.
        KeyboardInterrupt: After Ctrl-C; the last checkpoint is kept.
    """
    config, identity = _ready(config)
    output = Path(config.output).expanduser().absolute()
    figures = _finished(output, identity)
    if figures is not None:
        print("this training is finished: nothing to train", flush=True)
        return _end(output, figures)
    beside = output.with_name(f"{output.name}.training")
    try:
        beside.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"output: {output} must be where a folder can be made ({error.strerror}); name another"
        ) from None
    with cluster() as dashboard:
        _check_resources(config)
        print(f"dashboard: {dashboard}", flush=True)
        result = _fitted(config, beside, identity)
        metrics, checkpoint = max(
            ((metrics, checkpoint) for checkpoint, metrics in result.best_checkpoints or []),
            key=lambda found: (found[0][SCORE], found[0]["step"]),
        )
        figures = Figures(identity, config.num_steps, metrics)
        with checkpoint.as_directory() as folder:
            _write_network(config, output, load_file(Path(folder) / STATE_FILE), figures)
    shutil.rmtree(beside / identity)  # the checkpoints; the logs stay
    return _end(output, figures)


def _end(output: Path, figures: Figures) -> int:
    print(
        f"{_accuracies(figures.metrics)} on held-out clips, "
        f"at step {figures.metrics['step']:g} of {figures.num_steps}"
    )
    print(f"results: {output}", flush=True)
    return 0


def _ready(config: SyncNetConfig) -> tuple[SyncNetConfig, str]:
    """Checks that networks and clips are there and fit, drawing synthetic clips if the settings ask for them.

    Returns:
        The settings with the folder of the clips filled in, and a name for all that decides the result.
    """
    sources = {name: getattr(config, name) for name in ("vae", "audio_encoder")}
    fingerprints = {name: source_fingerprint(name, source) for name, source in sources.items() if source is not None}
    if config.data.synthetic is not None:
        _check_model(config, config.data.synthetic.resolution)
        assert config.vae is not None and config.audio_encoder is not None
        data = drawn_clips(config.data, config.vae, config.audio_encoder)
        config = dataclasses.replace(config, data=data)
    clips = PreparedClips.open(config.data.folder)
    _check_model(config, clips.index.resolution)
    SyncWindows(clips, config.data.num_frames, config.windows_per_clip)
    held_out_windows(clips, config.data.num_frames, config.num_validation_windows)

    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in _NOT_IN_IDENTITY}
    decides = [settings, config.data.num_frames, clips.fingerprint, fingerprints.get("vae")]
    return config, digest(json.loads(json.dumps(decides)))[:8]


def _check_model(config: SyncNetConfig, clips_resolution: int) -> None:
    """Runs the network without memory, so that wrong settings are found before anything is started."""
    num_frames, resolution = config.data.num_frames, config.resolution or clips_resolution
    try:
        with torch.device("meta"):
            syncnet = build_syncnet(config)
            images = visual_input(syncnet, torch.empty(1, 3, num_frames, resolution, resolution))
            syncnet(images, torch.empty(1, 1, 80, num_mel_columns(num_frames)))
    except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError) as error:
        where = f"{num_frames} frames of {resolution} pixels"
        raise UserError(f"model: must be a StableSyncNet for {where}: {error}; correct it") from None


def _accuracies(metrics: Metrics) -> str:
    shares = f"in sync {metrics['in_sync_right']:.1%}, off sync {metrics['off_sync_right']:.1%}"
    return f"balanced accuracy {metrics[SCORE]:.1%} ({shares})"


def _finished(output: Path, identity: str) -> Figures | None:
    """The figures of this very training if it has ended before; None if there is nothing at its place yet."""
    if not output.exists():
        return None
    remedy = "name another folder, or remove it"
    try:
        figures = Figures(**json.loads((output / FIGURES_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        raise UserError(f"output: {output} holds something else than a trained SyncNet; {remedy}") from None
    if figures.training != identity:
        raise UserError(f"output: {output} holds a SyncNet trained on other clips or with other settings; {remedy}")
    return figures


def _check_resources(config: SyncNetConfig) -> None:
    """On one machine, processes that can never be placed are refused; a cluster of several may still grow."""
    if len(ray.nodes()) > 1:
        return
    have = ray.cluster_resources()
    for resource, each in {"CPU": config.num_threads, "GPU": int(config.use_gpu)}.items():
        amount = config.num_workers * each
        if amount > have.get(resource, 0):
            raise UserError(
                f"num_workers: {config.num_workers} processes need {amount} {resource}, this machine has "
                f"{have.get(resource, 0):g}; lower num_workers or num_threads, or join a cluster"
            )


def _fitted(config: SyncNetConfig, beside: Path, identity: str) -> ray.train.Result:
    """Runs Ray Train, which goes on from what it finds under the same name, and shows its progress."""
    progress = Queue(actor_options={"num_cpus": 0})
    resources = {"CPU": config.num_threads} | ({"GPU": 1} if config.use_gpu else {})
    trainer = TorchTrainer(
        train_loop,
        train_loop_config=LoopConfig(config=config, progress=progress),
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.num_workers, use_gpu=config.use_gpu, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=identity,
            storage_path=str(beside),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1, checkpoint_score_attribute=SCORE),
            failure_config=ray.train.FailureConfig(max_failures=MAX_RESTARTS),
        ),
    )
    # Not in this process: its main thread would leave Ctrl-C to Ray Train, which ends with status 0, and another one
    # would go on asking a cluster that is gone, at which Ray ends the process with status 1.
    fit = ray.remote(num_cpus=0, max_retries=0)(lambda: trainer.fit())
    running = fit.remote()
    _show(config, progress, running, beside / "tensorboard" / identity)
    try:
        result: ray.train.Result = ray.get(running)
        return result
    except ray.train.WorkerGroupError as error:
        last_line = str(next(iter(error.worker_failures.values()))).strip().splitlines()[-1]
        raise UserError(f"a process has failed {MAX_RESTARTS + 1} times: {last_line}") from error


def _show(config: SyncNetConfig, progress: Queue, running: ray.ObjectRef, logs: Path) -> None:
    """Shows steps and accuracies as they come, and writes them to TensorBoard, until the training has ended."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with Progress(console=console, transient=True) as bar, SummaryWriter(str(logs)) as writer:
        task = bar.add_task("starting", total=config.num_steps)
        while not (ray.wait([running], timeout=0)[0] and progress.empty()):
            try:
                step, metrics = progress.get(timeout=0.5)
            except queue.Empty:
                continue
            for name, value in metrics.items():
                writer.add_scalar(f"val/{name}" if "sync" in name or name == SCORE else name, value, step)
            bar.update(task, completed=step, description=f"loss {metrics['loss']:.3f}")
            if SCORE in metrics:
                console.print(
                    f"step {step} of {config.num_steps}: loss {metrics['loss']:.3f}, {_accuracies(metrics)}"
                )


def _write_network(config: SyncNetConfig, output: Path, state: dict[str, torch.Tensor], figures: Figures) -> None:
    """Writes the network's folder with its figures, which appears at once."""
    syncnet = build_syncnet(config)
    syncnet.load_state_dict(model_weights(state))
    with new_folder(output) as folder:
        syncnet.save_pretrained(folder)
        (folder / FIGURES_FILE).write_text(json.dumps(dataclasses.asdict(figures), indent=1) + "\n")
