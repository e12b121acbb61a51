"""The sizes that are counted and measured: a recipe, networks with random weights, random clips; all made here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from transformers import VideoMAEConfig, VideoMAEModel

from latentsync_ray.config.searchfiles import search_of_one
from latentsync_ray.core.hashing import file_sha256
from latentsync_ray.latentsync.config import ComponentsConfig, LatentSyncRecipe
from latentsync_ray.latentsync.data.clips import FORMAT, Index, save_clip
from latentsync_ray.latentsync.data.config import DataConfig
from latentsync_ray.latentsync.data.media import FPS, SAMPLES_PER_FRAME, face_mask, num_mel_columns
from latentsync_ray.latentsync.losses import LPIPS
from latentsync_ray.latentsync.syncnet.config import load_syncnet
from latentsync_ray.latentsync.syncnet.training import build_syncnet

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
STAGES = ("first_stage", "second_stage")
WHISPER_STATES = 5
"""Of Whisper tiny: four layers and what goes into the first."""


@dataclass(frozen=True)
class Size:
    """A recipe, and the shapes of the networks that it names by a hub id."""

    recipe: str
    resolution: int
    vae: dict[str, Any]
    lpips_channels: tuple[int, ...]
    video_encoder: dict[str, Any]
    overrides: tuple[str, ...] = ()
    """`key=value` arguments that make the recipe still smaller."""

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
    ("first_stage.batch_size=1", *(f"{stage}.model.block_out_channels=[32,32]" for stage in STAGES)),
)


def recipe_of(size: Size, arguments: list[str]) -> LatentSyncRecipe:
    """The recipe of a size, in bfloat16, with `key=value` arguments applied."""
    _, recipe = search_of_one(CONFIGS / size.recipe, [*size.overrides, *arguments])
    assert isinstance(recipe, LatentSyncRecipe)
    return replace(recipe, **{stage: replace(getattr(recipe, stage), dtype="bfloat16") for stage in STAGES})


def make_inputs(size: Size, recipe: LatentSyncRecipe, folder: Path) -> LatentSyncRecipe:
    """Makes networks and clips in a folder. Returns the recipe with them, one validation sample being enough."""
    torch.manual_seed(0)
    for name, make in size.networks().items():
        make().save_pretrained(folder / name)
    write_clips(size, recipe, folder / "clips")
    return _with_inputs(size, recipe, folder)


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


def prepared_recipe(size: Size, arguments: list[str], folder: Path) -> LatentSyncRecipe:
    """The recipe of a size with the networks and clips that `make_inputs` has made in a folder."""
    return _with_inputs(size, recipe_of(size, arguments), folder)


def _with_inputs(size: Size, recipe: LatentSyncRecipe, folder: Path) -> LatentSyncRecipe:
    components = ComponentsConfig(**{name: str(folder / name) for name in size.networks()})
    data = DataConfig(str(folder / "clips"), recipe.data.num_frames)
    validation = replace(recipe.validation, num_samples=1)
    return replace(recipe, data=data, components=components, validation=validation)
