"""Part of `make bench`: one training step against what it could be, as ratios in one run.

1. The UNet's forward and backward pass against diffusers' own 2D UNet of the same widths on the same 16 images.
2. A stage-one step on prepared clips against the same step with the encoding of its frames inside.
3. Drawing samples against the step that they are for.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from rich.console import Console
from rich.table import Table

from latentsync_ray.configfiles import load_recipe
from latentsync_ray.data.clips import PreparedClips
from latentsync_ray.inputs import ready_inputs
from latentsync_ray.learn.autoencoder import encode_latents
from latentsync_ray.learn.stage import LatentSyncTraining
from latentsync_ray.learn.training import TrainingSetup
from latentsync_ray.learn.unet import UNet3DConditionModel

ROOT = Path(__file__).resolve().parents[1]
WIDTHS = (64, 128, 256, 256)
NUM_FRAMES, SIZE = 16, 32
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


def unets() -> list[float]:
    """Forward and backward pass: ours without motion modules, diffusers' 2D UNet."""
    shape = {
        "in_channels": 13,
        "out_channels": 4,
        "block_out_channels": WIDTHS,
        "cross_attention_dim": 384,
        "attention_head_dim": 8,
    }
    ours = UNet3DConditionModel(**shape, use_motion_module=False, add_audio_layer=True)
    theirs = UNet2DConditionModel(
        **shape,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )
    sample, audio = torch.randn(1, 13, NUM_FRAMES, SIZE, SIZE), torch.randn(1, NUM_FRAMES, 50, 384)
    images, states = sample[0].transpose(0, 1).contiguous(), audio[0]
    timestep = torch.tensor([500])
    print(f"parameters: ours {_count(ours):,}, diffusers' {_count(theirs):,}")

    def step(unet: torch.nn.Module, *inputs: torch.Tensor) -> None:
        unet.zero_grad(set_to_none=True)
        unet(*inputs).sample.square().mean().backward()

    return seconds_of(lambda: step(ours, sample, timestep, audio), lambda: step(theirs, images, timestep, states))


def stage_one(data: str, vae: str) -> list[float]:
    """A stage-one step, the same with its frames encoded inside, and the drawing of its samples."""
    overrides = {"data.folder": data, "components.vae": vae}
    recipe, _ = ready_inputs(load_recipe(ROOT / "configs" / "real_tiny", overrides))
    samples = PreparedClips.open(recipe.data.folder)
    training = LatentSyncTraining(
        TrainingSetup(
            samples, recipe.components, recipe.validation, recipe.data.num_frames, recipe.seed, torch.device("cpu")
        )
    )
    stage = recipe.first_stage
    training.build("first_stage", stage, None, "")

    def draw() -> list[dict[str, torch.Tensor]]:
        return [samples.train_sample(0, 0, index, recipe.data.num_frames) for index in range(stage.batch_size)]

    @torch.no_grad()
    def encode() -> None:
        for sample in draw():
            frames = sample["frames"].transpose(0, 1) / 127.5 - 1
            for _ in ("frames", "masked frames", "reference frames"):
                for frame in frames.split(1):
                    encode_latents(training.vae, frame)

    def with_encoding() -> None:
        encode()
        training.step(0, 0)

    return seconds_of(lambda: training.step(0, 0), with_encoding, draw)


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def main() -> None:
    """Measures and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="a folder that preprocess has made from real clips (leaves 2 and 3 out)")
    parser.add_argument("--vae", help="the autoencoder that it was made with")
    options = parser.parse_args()
    table = Table(title=f"median of {REPEATS}, {torch.get_num_threads()} threads")
    for column in ("", "ours, s", "other, s", "ratio"):
        table.add_column(column, justify="right")

    def row(name: str, own: float, other: float) -> None:
        table.add_row(name, f"{own:.3f}", f"{other:.3f}", f"{own / other:.3f}")

    row("UNet forward and backward / diffusers' 2D UNet", *unets())
    if options.data:
        step, with_encoding, drawing = stage_one(options.data, options.vae)
        row("stage-one step on prepared clips / with encoding inside", step, with_encoding)
        row("drawing the samples / the step", drawing, step)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
