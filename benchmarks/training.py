"""Part of `make bench`: one training step against what it could be, as ratios in one run.

1. The UNet's forward and backward pass against diffusers' own 2D UNet of the same widths on the same 16 images; also
   the most memory that a process which does nothing else takes.
2. A stage-one step on prepared clips against the same step with the encoding of its frames inside.
3. Drawing samples against the step that they are for.

The last two need real clips, a real autoencoder and a real Whisper (`--real`), and are left out where there are none.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from rich.console import Console
from rich.table import Table

from latentsync_ray.config.loading import load_recipe
from latentsync_ray.latentsync.data.aligned import read_clip
from latentsync_ray.latentsync.data.clips import PreparedClips
from latentsync_ray.latentsync.inputs import ready_inputs
from latentsync_ray.latentsync.models.autoencoder import encode_latents
from latentsync_ray.latentsync.models.unet import UNet3DConditionModel
from latentsync_ray.latentsync.preparation.prepare import prepare
from latentsync_ray.latentsync.stage import Stages, StagesSetup
from latentsync_ray.store import Store

ROOT = Path(__file__).resolve().parents[1]
WIDTHS = (64, 128, 256, 256)
NUM_FRAMES, SIZE = 16, 32
SHAPE = {
    "in_channels": 13,
    "out_channels": 4,
    "block_out_channels": WIDTHS,
    "cross_attention_dim": 384,
    "attention_head_dim": 8,
}
REPEATS = 5


def seconds_of(*functions: Callable[[], object]) -> list[float]:
    """Median seconds of each function, called in turns so that they meet the same machine."""
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(REPEATS + 1):
        for own, function in zip(times, functions, strict=True):
            started = time.perf_counter()
            function()
            if repeat > 0:  # the first one warms up
                own.append(time.perf_counter() - started)
    return [statistics.median(own) for own in times]


def our_step() -> Callable[[], None]:
    """A forward and backward pass of our UNet without motion modules."""
    unet = UNet3DConditionModel(**SHAPE, use_motion_module=False, add_audio_layer=True)
    inputs = torch.randn(1, 13, NUM_FRAMES, SIZE, SIZE), torch.tensor([500]), torch.randn(1, NUM_FRAMES, 50, 384)
    return partial(_step, unet, *inputs)


def their_step() -> Callable[[], None]:
    """The same of diffusers' 2D UNet, the frames being its images."""
    unet = UNet2DConditionModel(
        **SHAPE,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )
    inputs = torch.randn(NUM_FRAMES, 13, SIZE, SIZE), torch.tensor([500]), torch.randn(NUM_FRAMES, 50, 384)
    return partial(_step, unet, *inputs)


def _step(unet: torch.nn.Module, *inputs: torch.Tensor) -> None:
    unet.zero_grad(set_to_none=True)
    unet(*inputs).sample.square().mean().backward()


def peak_gib(make_step: Callable[[], Callable[[], None]]) -> float:
    """Most memory of a process that takes two steps, in GiB, libraries included."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_of, (make_step,))


def _peak_of(make_step: Callable[[], Callable[[], None]]) -> float:
    step = make_step()
    step()
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def stage_one(real: Path) -> list[float]:
    """A stage-one step on two real clips, the same with its frames encoded inside, and the drawing of its samples."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, vae = Path(scratch) / "set", str(real / "autoencoder")
        clips = [read_clip(path) for path in sorted((real / "clips").glob("*.mp4"))[:2]]
        encoder = str(real / "whisper-tiny.en-encoder")
        prepare(clips, folder, vae=vae, audio_encoder=encoder, resolution=256, validation=[clips[1].name])
        return _stage_one(str(folder), vae)


def _stage_one(data: str, vae: str) -> list[float]:
    overrides = {"data.folder": data, "components.vae": vae}
    recipe = ready_inputs(load_recipe(ROOT / "configs" / "real_tiny", overrides), Store(f"{data}-notes")).recipe
    samples = PreparedClips.open(recipe.data.folder)
    training = Stages(
        StagesSetup(
            samples, recipe.components, recipe.validation, recipe.data.num_frames, recipe.seed, torch.device("cpu")
        )
    )
    stage = recipe.first_stage
    training.build("first_stage", stage, None, "")

    steps = itertools.count()

    def draw() -> list[dict[str, torch.Tensor]]:
        step = next(steps)
        return [samples.train_sample(0, step, index, recipe.data.num_frames) for index in range(stage.batch_size)]

    @torch.no_grad()
    def encode() -> None:
        for sample in draw():
            frames = sample["frames"].transpose(0, 1) / 127.5 - 1
            for _ in ("frames", "masked frames", "reference frames"):
                for frame in frames.split(1):
                    encode_latents(training.networks.vae, frame)

    def with_encoding() -> None:
        encode()
        training.step(0, 0)

    return seconds_of(lambda: training.step(0, 0), with_encoding, draw)


def main() -> None:
    """Measures and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real", type=Path, default=ROOT.parent / "shared" / "real", help="%(default)s")
    options = parser.parse_args()
    table = Table(title=f"median of {REPEATS}, {torch.get_num_threads()} threads")
    for column in ("", "ours", "other", "ratio"):
        table.add_column(column, justify="right")

    def row(name: str, own: float, other: float) -> None:
        table.add_row(name, f"{own:.3f}", f"{other:.3f}", f"{own / other:.3f}")

    # First, since a process counts as its own what its parent had when it was started.
    row("UNet forward and backward / diffusers' 2D UNet, GiB at most", peak_gib(our_step), peak_gib(their_step))
    row("UNet forward and backward / diffusers' 2D UNet, s", *seconds_of(our_step(), their_step()))
    if options.real.is_dir():
        step, with_encoding, drawing = stage_one(options.real)
        row("stage-one step on prepared clips / with encoding inside, s", step, with_encoding)
        row("drawing the samples / the step, s", drawing, step)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
