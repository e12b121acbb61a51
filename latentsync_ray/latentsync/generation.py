"""Generation of a clip's mouth by full sampling, to an mp4 with the clip's sound."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from latentsync_ray.config.errors import UserError
from latentsync_ray.latentsync.config import LatentSyncRecipe
from latentsync_ray.latentsync.data.aligned import read_clip
from latentsync_ray.latentsync.data.clips import PreparedClips
from latentsync_ray.latentsync.data.media import (
    SAMPLES_PER_FRAME,
    Clip,
    audio_windows,
    from_pcm,
    read_mask,
    resize_mask,
    write_clip,
)
from latentsync_ray.latentsync.inputs import prepared_clips
from latentsync_ray.latentsync.models.autoencoder import Autoencoder, decode_latents, latent_factor, load_autoencoder
from latentsync_ray.latentsync.models.unet import UNet3DConditionModel
from latentsync_ray.latentsync.preparation.encode import AudioEncoder, clip_tensors
from latentsync_ray.latentsync.sampling import sample_latents


@dataclass(frozen=True)
class OwnClip:
    """An aligned clip outside of the prepared set."""

    file: Path
    """A video with sound."""
    audio_encoder: str | None = None
    """The Whisper that the set was prepared with; None takes the recipe's."""
    resolution: int | None = None
    """Height and width in pixels; None takes the set's."""
    mask: Path | None = None
    """Picture, black where to generate; None takes the set's, resized."""


class Generator:
    """A trained UNet with its recipe's autoencoder, on the GPU if there is one.

    Args:
        recipe: Names the autoencoder and the prepared set.
        model: The UNet's keyword arguments.
        weights: Its state dict.
    """

    def __init__(self, recipe: LatentSyncRecipe, model: Mapping[str, object], weights: Mapping[str, Tensor]):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._recipe = recipe
        self._unet = UNet3DConditionModel(**model)
        self._unet.load_state_dict(weights)
        self._unet.to(device).eval()
        self._vae = load_autoencoder(recipe.components.vae).to(device)

    def write(
        self, out: Path, clip: OwnClip | str | None, num_inference_steps: int, guidance_scale: float, seed: int
    ) -> str:
        """Generates a clip's mouth and writes the clip.

        Args:
            out: The .mp4.
            clip: A clip outside of the prepared set, the name of one in it, or None for the first held-out one.
            num_inference_steps: As `sample_latents` takes it.
            guidance_scale: As `sample_latents` takes it.
            seed: Of the noise.

        Returns:
            The clip's name.

        Raises:
            UserError: There is no such clip, or it does not fit.
        """
        num_frames = self._recipe.data.num_frames
        if isinstance(clip, OwnClip):
            factor = latent_factor(self._vae) * 2 ** (len(self._unet.config.block_out_channels) - 1)
            name, tensors, mask = _own_clip(clip, self._recipe, self._vae, factor)
        else:
            name, tensors, mask = _prepared_clip(prepared_clips(self._recipe), clip, num_frames)
        if len(tensors["frames"]) < num_frames:
            raise UserError(
                f"{name}: must have {num_frames} frames, has {len(tensors['frames'])}; give a longer clip"
            )
        frames = generate(self._unet, self._vae, tensors, mask, num_frames, num_inference_steps, guidance_scale, seed)
        wave = from_pcm(tensors["wave"][: SAMPLES_PER_FRAME * len(frames)])
        out.parent.mkdir(parents=True, exist_ok=True)
        write_clip(out, Clip(name, frames.permute(0, 2, 3, 1).contiguous().numpy(), wave))
        return name


@torch.inference_mode()
def generate(
    unet: UNet3DConditionModel,
    vae: Autoencoder,
    tensors: Mapping[str, Tensor],
    mask: Tensor,
    num_frames: int,
    num_inference_steps: int,
    guidance_scale: float,
    seed: int,
) -> Tensor:
    """Generates the masked part of a clip.

    Args:
        unet: In evaluation mode, on the device where all is computed.
        vae: From `load_autoencoder`, on the same.
        tensors: What a prepared clip holds (`save_clip`): frames uint8 (F, 3, H, W), latents,
            masked_latents and audio_features.
        mask: (H, W), with which masked_latents were made; 1 = kept.
        num_frames: Length of the windows in which it is done, at most F; a shorter rest at the end is cut.
        num_inference_steps: As `sample_latents` takes it.
        guidance_scale: As `sample_latents` takes it.
        seed: Of the noise.

    Returns:
        uint8 (F', 3, H, W), F' a multiple of num_frames.
    """
    latents = tensors["latents"]
    latent_mask = resize_mask(mask, (latents.shape[2], latents.shape[3]))
    starts = range(0, len(latents) - num_frames + 1, num_frames)
    frames = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("generating", total=len(starts) * num_inference_steps)
        for start in starts:
            window = slice(start, start + num_frames)
            # As in LatentSync's pipeline the reference is the window itself.
            batch = {
                "masks": latent_mask.repeat(1, num_frames, 1, 1),
                "masked_latents": tensors["masked_latents"][window].transpose(0, 1),
                "ref_latents": latents[window].transpose(0, 1),
                "audio_features": audio_windows(tensors["audio_features"], start, num_frames),
            }
            batch = {name: tensor[None].to(vae.device) for name, tensor in batch.items()}
            generated = sample_latents(
                unet, batch, num_inference_steps, guidance_scale, seed, lambda: progress.advance(task)
            )
            pixels = decode_latents(vae, generated[0].transpose(0, 1)).cpu()
            made = pixels.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
            # What was not masked stays the clip's own.
            frames.append(torch.where(mask.bool(), tensors["frames"][window], made))
    return torch.cat(frames)


def _prepared_clip(clips: PreparedClips, name: str | None, num_frames: int) -> tuple[str, dict[str, Tensor], Tensor]:
    """Name, tensors and mask (H, W) of a clip of the prepared set; without a name of the first held-out one."""
    if name is None:
        record = clips.usable("validation", num_frames)[0]
    else:
        by_name = {clip.name: clip for clip in clips.index.clips}
        if name not in by_name:
            raise UserError(
                f"--clip: must be an .mp4 or one of the {len(by_name)} clips of {clips.folder}, got {name}; its "
                f"index.json names them, such as {clips.validation[0].name}"
            )
        record = by_name[name]
    return record.name, clips.whole(record), clips.mask


def _own_clip(
    own: OwnClip, recipe: LatentSyncRecipe, vae: Autoencoder, factor: int
) -> tuple[str, dict[str, Tensor], Tensor]:
    """The same of an mp4 with the mask that it is given, else that of the prepared set, resized."""
    audio_encoder = own.audio_encoder or recipe.components.audio_encoder
    if audio_encoder is None:
        raise UserError("--audio-encoder: must be given, since the recipe names none; name the one of preparation")
    resolution = own.resolution
    if resolution is not None and (resolution <= 0 or resolution % factor):
        raise UserError(f"--resolution: must be a multiple of {factor}, is {resolution}; give another")
    if resolution is None or own.mask is None:
        prepared = prepared_clips(recipe)
        resolution = prepared.index.resolution if resolution is None else resolution
        mask = resize_mask(prepared.mask, (resolution, resolution))
    if own.mask is not None:
        mask = read_mask(own.mask, resolution)
    clip = read_clip(own.file, resolution)
    for warning in clip.warnings:
        print(f"warning: {clip.name}: {warning}", file=sys.stderr)
    return clip.name, clip_tensors(clip, vae, AudioEncoder(audio_encoder), mask), mask
