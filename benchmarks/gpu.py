"""`make bench-gpu`: training steps of `configs/256` at full size in bfloat16, both stages, eager and compiled.

All networks have the official sizes and random weights, made here, and the clips are random: nothing is downloaded.
Batch sizes are the recipe's for one GPU (8 in stage one, 1 in stage two), as is all else; other values of the recipe
can be given, for example `make bench-gpu ARGS='first_stage.batch_size=4 second_stage.gradient_checkpointing=false'`.
Each row is measured by a process of its own, and one that runs out of memory or time says so in its row.

FLOPs are counted, not carried out, on a step without checkpointing: what checkpointing computes again is no use and
not among them. They are those of matrix products, convolutions and attention, forward and backward, of the UNet and
of what the stage's losses run; norms, activations, softmax, resizing of masks and the optimizer are left out. MFU is
the share of the peak that these FLOPs are (PaLM, https://arxiv.org/abs/2204.02311, appendix B).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import VideoMAEConfig, VideoMAEModel

from latentsync_ray.cli import run_cli
from latentsync_ray.config.loading import STAGE_FILES
from latentsync_ray.config.searchfiles import search_of_one
from latentsync_ray.core.hashing import file_sha256
from latentsync_ray.latentsync.config import LOSS_TERMS, ComponentsConfig, LatentSyncRecipe, LatentSyncStage
from latentsync_ray.latentsync.data.clips import FORMAT, Index, PreparedClips, save_clip
from latentsync_ray.latentsync.data.config import DataConfig
from latentsync_ray.latentsync.data.media import FPS, SAMPLES_PER_FRAME, face_mask, num_mel_columns
from latentsync_ray.latentsync.diffusion import build_noise_scheduler
from latentsync_ray.latentsync.losses import LPIPS, TREPALoss
from latentsync_ray.latentsync.models.unet import UNet3DConditionModel, select_trainable
from latentsync_ray.latentsync.stage import Stages, StagesSetup
from latentsync_ray.latentsync.syncnet.config import load_syncnet
from latentsync_ray.latentsync.syncnet.training import build_syncnet

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
H100_TFLOPS = 989.0
"""Peak of an H100 SXM in bfloat16, dense: half of the 1,979 with sparsity of https://www.nvidia.com/en-us/data-center/h100."""
WHISPER_STATES = 5
"""Of Whisper tiny: four layers and what goes into the first."""
NUM_WARM_UP_STEPS = 3
RESERVED_SECONDS = 60
"""Kept for each configuration that is still to come."""
END_SECONDS = 10
"""In which a process that has told its figures may end by itself."""
COLUMNS = ("stage", "UNet", "batch", "s a step", "first step, s", "GiB at most", "TFLOP a step", "MFU, %", "remark")


@dataclass(frozen=True)
class Size:
    """A recipe, and the shapes of the networks that it names by a hub id."""

    recipe: str
    resolution: int
    vae: dict[str, Any]
    lpips_channels: tuple[int, ...]
    video_encoder: dict[str, Any]

    def networks(self) -> dict[str, Callable[[], torch.nn.Module]]:
        """What makes each frozen network with random weights, by its name in a recipe's components."""
        blocks = len(self.vae["block_out_channels"])
        return {
            "vae": lambda: AutoencoderKL(
                **self.vae,
                down_block_types=["DownEncoderBlock2D"] * blocks,
                up_block_types=["UpDecoderBlock2D"] * blocks,
                latent_channels=4,
            ),
            "syncnet": lambda: build_syncnet(load_syncnet(CONFIGS / self.recipe / "syncnet.yaml", [])),
            "lpips": lambda: LPIPS(channels=self.lpips_channels),
            "video_encoder": lambda: VideoMAEModel(VideoMAEConfig(**self.video_encoder)),
        }

    @property
    def latent_size(self) -> int:
        """Height and width of the latents."""
        return self.resolution // 2 ** (len(self.vae["block_out_channels"]) - 1)


FULL = Size(
    "256",
    256,
    # stabilityai/sd-vae-ft-mse, config.json
    {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "norm_num_groups": 32},
    (64, 128, 256, 512, 512),
    # MCG-NJU/videomae-large, config.json
    {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
)
SMALL = Size(
    "demo",
    64,
    {"block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 4},
    (8, 8, 8, 8, 8),
    {
        "image_size": 32,
        "num_frames": 8,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    },
)


@dataclass(frozen=True)
class Measured:
    """Of one configuration: seconds of a step (median) and of the first one, and the most memory at any time."""

    seconds: float
    first_seconds: float
    gib: float


@dataclass(frozen=True)
class NotMeasured:
    """Why there are no figures; running out of memory or time is a result, anything else a fault."""

    reason: str
    is_fault: bool


def make_inputs(size: Size, recipe: LatentSyncRecipe, folder: Path) -> LatentSyncRecipe:
    """Makes networks and clips in a folder. Returns the recipe with them, one validation sample being enough."""
    torch.manual_seed(0)
    for name, make in size.networks().items():
        make().save_pretrained(folder / name)
    components = ComponentsConfig(**{name: str(folder / name) for name in size.networks()})
    write_clips(size, recipe, folder / "clips")
    data = DataConfig(str(folder / "clips"), recipe.data.num_frames)
    validation = replace(recipe.validation, num_samples=1)
    return replace(recipe, data=data, components=components, validation=validation)


def write_clips(size: Size, recipe: LatentSyncRecipe, folder: Path) -> None:
    """Writes a prepared set of two random clips, each of two windows."""
    num_frames, width = 2 * recipe.data.num_frames, recipe.first_stage.model["cross_attention_dim"]
    frames, latents = (num_frames, 3, size.resolution, size.resolution), (4, size.latent_size, size.latent_size)
    records = []
    for split in ("train", "validation"):
        tensors = {
            "frames": torch.randint(0, 256, frames, dtype=torch.uint8),
            "latents": torch.randn(num_frames, *latents),
            "masked_latents": torch.randn(num_frames, *latents),
            "latents_posterior": torch.randn(num_frames, 8, *latents[1:]),
            "masked_latents_posterior": torch.randn(num_frames, 8, *latents[1:]),
            "audio_features": torch.randn(2 * num_frames, WHISPER_STATES, width),
            "mel": torch.randn(80, num_mel_columns(num_frames) + 1),
            "wave": torch.zeros(SAMPLES_PER_FRAME * num_frames, dtype=torch.int16),
        }
        records.append(replace(save_clip(folder, split, tensors), split=split))
    save_file({"mask": face_mask(size.resolution)}, folder / "mask.safetensors")
    Index(
        format=FORMAT,
        source="random",
        resolution=size.resolution,
        fps=FPS,
        latent_shape=list(latents),
        audio_shape=[WHISPER_STATES, width],
        mask_sha256=file_sha256(folder / "mask.safetensors"),
        vae_sha256="random",
        audio_encoder_sha256="random",
        clips=records,
        posterior_scaling=[0.0, 0.18215],
    ).write(folder)


class Imagined(Stages):
    """A stage whose networks were made under a FakeTensorMode: they have shapes and take no memory."""

    def __init__(self, size: Size, setup: StagesSetup, config: LatentSyncStage):
        self.setup, self.noise_scheduler = setup, build_noise_scheduler()
        self.config = replace(config, gradient_checkpointing=False)
        networks = {name: make().requires_grad_(False).eval() for name, make in size.networks().items()}
        self.vae, self.syncnet, self.lpips = networks["vae"], networks["syncnet"], networks["lpips"]
        self.trepa = TREPALoss(networks["video_encoder"])
        self.network = self.unet = UNet3DConditionModel(**config.model).train()
        select_trainable(self.unet, config.trainable_modules)


def flops_of_sample(size: Size, recipe: LatentSyncRecipe, config: LatentSyncStage) -> int:
    """Counts the FLOPs of a step, forward and backward, for one sample; a batch takes as many times more."""
    clips = PreparedClips.open(recipe.data.folder)
    sample = clips.train_sample(recipe.seed, 0, 0, recipe.data.num_frames)
    batch = {name: value[None] for name, value in sample.items() if name != "name"}
    setup = _setup(recipe, clips, torch.device("cpu"))
    # Attention by plain products: the fused kernels compute part of it again in the backward pass.
    with FakeTensorMode(allow_non_fake_inputs=True), sdpa_kernel(SDPBackend.MATH):
        training = Imagined(size, setup, config)
        with FlopCounterMode(display=False) as counter:
            timesteps, noise = torch.tensor([500]), torch.randn(batch["latents"].shape)
            terms = training._loss_terms(training.network, batch, timesteps, noise, config.loss)
            sum(getattr(config.loss, term) * terms[term] for term in LOSS_TERMS if term in terms).backward()
    return counter.get_total_flops()


def measure(recipe: LatentSyncRecipe, stage: str, config: LatentSyncStage, device: str, num_steps: int) -> Measured:
    """Takes training steps as a worker does."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    training = Stages(_setup(recipe, PreparedClips.open(recipe.data.folder), torch.device(device)))
    training.build(stage, config, None, "")
    seconds = []
    for step in range(NUM_WARM_UP_STEPS + num_steps):
        started = time.perf_counter()
        training.step(step, step)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    if device == "cuda":
        gib = torch.cuda.max_memory_allocated() / 2**30
    else:
        gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return Measured(statistics.median(seconds[NUM_WARM_UP_STEPS:]), seconds[0], gib)


def _setup(recipe: LatentSyncRecipe, clips: PreparedClips, device: torch.device) -> StagesSetup:
    return StagesSetup(clips, recipe.components, recipe.validation, recipe.data.num_frames, recipe.seed, device)


def guarded(limit_seconds: float, function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a process of its own. Returns what it returns, or a `NotMeasured`."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, *arguments))
    process.start()
    sender.close()  # now the pipe ends when the process does
    try:
        if receiver.poll(limit_seconds):
            outcome = receiver.recv()
            process.join(END_SECONDS)
            return outcome
        return NotMeasured(f"not done after {limit_seconds:.0f} s", is_fault=False)
    except EOFError:
        process.join()
        return NotMeasured(f"failed, exit status {process.exitcode}", is_fault=True)
    finally:
        process.kill()
        process.join()


def _send(sender: Connection, function: Callable[..., Any], *arguments: Any) -> None:
    try:
        sender.send(function(*arguments))
    except torch.OutOfMemoryError as error:
        sender.send(NotMeasured(". ".join(str(error).split(". ")[:2]), is_fault=False))


def main(arguments: list[str] | None = None) -> int:
    """Measures, printing a row of the table as soon as it is known. Returns 1 if something failed, else 0."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="steps to time (%(default)s)")
    parser.add_argument("--minutes", type=float, default=8, help="for all of it (%(default)s)")
    parser.add_argument("--peak-tflops", type=float, default=H100_TFLOPS, help="of the GPU (%(default)s: H100 SXM)")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled UNet out")
    parser.add_argument("--small", action="store_true", help="the demo's sizes, to try the whole path")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu is for --small")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values of the recipe")
    options = parser.parse_intermixed_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: there is no GPU here; `--device cpu --small` tries the whole path")
    size = SMALL if options.small else FULL
    _, recipe = search_of_one(CONFIGS / size.recipe, options.overrides)

    print("|".join(("", *(f" {name} " for name in COLUMNS), "")))
    print("| --- " * len(COLUMNS) + "|", flush=True)
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        recipe = make_inputs(size, recipe, Path(scratch))
        stages = {stage: replace(getattr(recipe, stage), dtype="bfloat16") for stage in STAGE_FILES}
        flops = {stage: flops_of_sample(size, recipe, config) for stage, config in stages.items()}
        ways = (False,) if options.no_compile else (False, True)
        plans = [(stage, replace(stages[stage], compile=compiled)) for compiled in ways for stage in stages]
        for number, (stage, config) in enumerate(plans, 1):
            left = started + 60 * options.minutes - time.monotonic() - RESERVED_SECONDS * (len(plans) - number)
            outcome = guarded(max(left, 0), measure, recipe, stage, config, options.device, options.steps)
            print(
                row(stage, config, flops[stage] * config.batch_size / 1e12, outcome, options.peak_tflops), flush=True
            )
            failed |= isinstance(outcome, NotMeasured) and outcome.is_fault
    device = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(
        f"\n{device}, torch {torch.__version__}, median of {options.steps} steps, peak {options.peak_tflops} TFLOP/s"
    )
    return int(failed)


def row(
    stage: str, config: LatentSyncStage, tflop: float, outcome: Measured | NotMeasured, peak_tflops: float
) -> str:
    """A line of the table."""
    cells = [stage, "compiled" if config.compile else "eager", str(config.batch_size)]
    if isinstance(outcome, Measured):
        cells += [f"{outcome.seconds:.3f}", f"{outcome.first_seconds:.1f}", f"{outcome.gib:.2f}", f"{tflop:.3g}"]
        cells += [f"{100 * tflop / outcome.seconds / peak_tflops:.2f}", ""]
    else:
        cells += ["", "", "", f"{tflop:.3g}", "", outcome.reason]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    run_cli(main)
