"""Lets a trial's UNet make a clip's mouth anew: full sampling, to an mp4 with the clip's sound.

latentsync-ray generate RESULTS out.mp4                       # a held-out clip of the prepared set
latentsync-ray generate RESULTS out.mp4 --clip speaker7/00    # a clip of it by name
latentsync-ray generate RESULTS out.mp4 --clip clip.mp4       # an aligned clip of yours
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from latentsync_ray.cli import program, run_cli
from latentsync_ray.config.loading import load_recipe
from latentsync_ray.config.recipe import Recipe, UserError
from latentsync_ray.export import find_results, stored_weights
from latentsync_ray.latentsync.data.clips import PreparedClips
from latentsync_ray.latentsync.data.media import (
    SAMPLES_PER_FRAME,
    Clip,
    audio_windows,
    from_pcm,
    read_clip,
    read_mask,
    resize_mask,
    write_clip,
)
from latentsync_ray.latentsync.inputs import prepared_clips
from latentsync_ray.latentsync.models.autoencoder import Autoencoder, decode_latents, latent_factor, load_autoencoder
from latentsync_ray.latentsync.models.unet import UNet3DConditionModel
from latentsync_ray.latentsync.preparation.encode import AudioEncoder, clip_tensors
from latentsync_ray.latentsync.sampling import sample_latents


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line and generates. Returns the exit status."""
    parser = argparse.ArgumentParser(prog=program("generate"), description=__doc__)
    parser.add_argument("results", help="the folder or URI that a search has printed last")
    parser.add_argument("out", type=Path, help="the .mp4 to write")
    parser.add_argument("--clip", help="name in the prepared set, or an aligned .mp4 with sound (a held-out clip)")
    parser.add_argument("--trial", type=int, help="number of the trial (the best)")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps (%(default)s)")
    parser.add_argument("--guidance", type=float, default=1.5, help="guidance scale (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (%(default)s)")
    own = parser.add_argument_group("an .mp4 of yours", "With --resolution and --mask no prepared set is needed.")
    own.add_argument("--audio-encoder", help="the Whisper that the set was prepared with (the recipe's)")
    own.add_argument("--resolution", type=int, help="height and width in pixels (the set's)")
    own.add_argument("--mask", type=Path, help="as preprocess was given (the set's, resized)")
    options = parser.parse_args(arguments)
    if options.out.suffix.lower() != ".mp4":
        raise UserError(f"{options.out}: must be an .mp4; name another file")
    if not 1 <= options.steps <= 1000:
        raise UserError(f"--steps: must be from 1 to 1000, got {options.steps}; 20 is usual")
    is_own = options.clip is not None and options.clip.lower().endswith(".mp4")
    for name in ("audio_encoder", "resolution", "mask"):
        if getattr(options, name) is not None and not is_own:
            raise UserError(
                f"--{name.replace('_', '-')}: is for an .mp4 of yours; leave it out, or name one by --clip"
            )

    segment, weights = stored_weights(options.results, options.trial)
    store, folder = find_results(options.results)
    with tempfile.TemporaryDirectory() as scratch:
        store.download(f"{folder}/best", Path(scratch))
        recipe = load_recipe(Path(scratch))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    unet = UNet3DConditionModel(**segment["config"]["model"])
    unet.load_state_dict(weights)
    vae = load_autoencoder(recipe.components.vae).to(device)
    num_frames = recipe.data.num_frames
    if is_own:
        factor = latent_factor(vae) * 2 ** (len(unet.config.block_out_channels) - 1)
        name, tensors, mask = _own_clip(options, recipe, vae, factor)
    else:
        name, tensors, mask = _prepared_clip(prepared_clips(recipe), options.clip, num_frames)
    if len(tensors["frames"]) < num_frames:
        raise UserError(f"{name}: must have {num_frames} frames, has {len(tensors['frames'])}; give a longer clip")
    frames = generate(
        unet.to(device).eval(), vae, tensors, mask, num_frames, options.steps, options.guidance, options.seed
    )
    wave = from_pcm(tensors["wave"][: SAMPLES_PER_FRAME * len(frames)])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_clip(options.out, Clip(name, frames.permute(0, 2, 3, 1).contiguous().numpy(), wave))
    print(f"wrote {options.out}, from {name}")
    return 0


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
    """Makes the masked part of a clip anew.

    Args:
        unet: In evaluation mode, on the device where all is computed.
        vae: From `load_autoencoder`, on the same.
        tensors: What a prepared clip holds (`data.clips.save_clip`): frames uint8 (F, 3, H, W), latents,
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
    options: argparse.Namespace, recipe: Recipe, vae: Autoencoder, factor: int
) -> tuple[str, dict[str, Tensor], Tensor]:
    """The same of an mp4 with the mask that it is given, else that of the prepared set, resized."""
    audio_encoder = options.audio_encoder or recipe.components.audio_encoder
    if audio_encoder is None:
        raise UserError("--audio-encoder: must be given, since the recipe names none; name the one of preparation")
    resolution = options.resolution
    if resolution is not None and (resolution <= 0 or resolution % factor):
        raise UserError(f"--resolution: must be a multiple of {factor}, is {resolution}; give another")
    if resolution is None or options.mask is None:
        prepared = prepared_clips(recipe)
        resolution = prepared.index.resolution if resolution is None else resolution
        mask = resize_mask(prepared.mask, (resolution, resolution))
    if options.mask is not None:
        mask = read_mask(options.mask, resolution)
    clip = read_clip(Path(options.clip), resolution)
    return clip.name, clip_tensors(clip, vae, AudioEncoder(audio_encoder), mask), mask


if __name__ == "__main__":
    run_cli(main)
