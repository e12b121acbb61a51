"""Lets a trial's UNet make a clip's mouth anew: full sampling, to an mp4 with the clip's sound.

python -m latentsync_ray.generate RESULTS out.mp4                    # a held-out drawn clip of the demo
python -m latentsync_ray.generate RESULTS out.mp4 --clip clip.mp4    # an aligned clip of yours
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from latentsync_ray.cli import run_cli
from latentsync_ray.config import Recipe, UserError
from latentsync_ray.configfiles import load_recipe
from latentsync_ray.data.clips import PreparedClips
from latentsync_ray.data.media import Clip, audio_windows, face_mask, read_clip, read_mask, resize_mask, write_clip
from latentsync_ray.data.synthetic import synthetic_clips
from latentsync_ray.encode import AudioEncoder, clip_tensors
from latentsync_ray.export import find_results, stored_weights
from latentsync_ray.learn.autoencoder import decode_latents, load_autoencoder
from latentsync_ray.learn.sampling import sample_latents
from latentsync_ray.learn.unet import UNet3DConditionModel


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line and generates. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m latentsync_ray.generate", description=__doc__)
    parser.add_argument("results", help="the folder or URI that a search has printed last")
    parser.add_argument("out", type=Path, help="the .mp4 to write")
    parser.add_argument("--clip", type=Path, help="an mp4 with sound, face aligned (a held-out drawn clip)")
    parser.add_argument("--audio-encoder", help="the Whisper that the clips were prepared with (the recipe's)")
    parser.add_argument("--resolution", type=int, help="of a clip of yours (the prepared clips', else 256)")
    parser.add_argument("--mask", type=Path, help="as preprocess was given (the prepared clips', else an ellipse)")
    parser.add_argument("--trial", type=int, help="number of the trial (the best)")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps (%(default)s)")
    parser.add_argument("--guidance", type=float, default=1.5, help="guidance scale (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (%(default)s)")
    options = parser.parse_args(arguments)
    if options.out.suffix.lower() != ".mp4":
        raise UserError(f"{options.out}: must be an .mp4; name another file")
    if not 1 <= options.steps <= 1000:
        raise UserError(f"--steps: must be from 1 to 1000, got {options.steps}; 20 is usual")

    segment, weights = stored_weights(options.results, options.trial)
    store, folder = find_results(options.results)
    with tempfile.TemporaryDirectory() as scratch:
        store.download(f"{folder}/best", Path(scratch))
        recipe = load_recipe(Path(scratch))
    prepared = None if options.mask else _prepared_mask(recipe)
    resolution = options.resolution or (256 if prepared is None else len(prepared))
    clip = _held_out_clip(recipe) if options.clip is None else read_clip(options.clip, resolution)
    resolution = clip.frames.shape[1]
    if options.mask is not None:
        mask = read_mask(options.mask, resolution)
    else:
        mask = prepared if prepared is not None and len(prepared) == resolution else face_mask(resolution)
    unet = UNet3DConditionModel(**segment["config"]["model"])
    unet.load_state_dict(weights)
    audio_encoder = options.audio_encoder or recipe.components.audio_encoder
    if audio_encoder is None:
        raise UserError("--audio-encoder: must be given, since the recipe names none; name the one of preparation")
    generated = generate(
        unet.eval(), clip, mask, recipe, audio_encoder, options.steps, options.guidance, options.seed
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_clip(options.out, generated)
    print(f"wrote {options.out}")
    return 0


@torch.inference_mode()
def generate(
    unet: UNet3DConditionModel,
    clip: Clip,
    mask: Tensor,
    recipe: Recipe,
    audio_encoder: str,
    num_inference_steps: int,
    guidance_scale: float,
    seed: int,
) -> Clip:
    """Makes the masked part of a clip anew, in windows of the recipe's length; a shorter rest at the end is cut."""
    num_frames = recipe.data.num_frames
    if len(clip.frames) < num_frames:
        raise UserError(f"{clip.name}: must have {num_frames} frames, has {len(clip.frames)}; give a longer one")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    vae, encoder = load_autoencoder(recipe.components.vae).to(device), AudioEncoder(audio_encoder)
    tensors = clip_tensors(clip, vae, encoder, mask)
    height, width = tensors["latents"].shape[-2:]
    latent_mask = resize_mask(mask, (height, width))
    starts = range(0, len(clip.frames) - num_frames + 1, num_frames)
    frames = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("generating", total=len(starts) * num_inference_steps)
        for start in starts:
            window = slice(start, start + num_frames)
            # As in LatentSync's pipeline the reference is the window itself.
            batch = {
                "masks": latent_mask.repeat(1, num_frames, 1, 1),
                "masked_latents": tensors["masked_latents"][window].transpose(0, 1),
                "ref_latents": tensors["latents"][window].transpose(0, 1),
                "audio_features": audio_windows(tensors["audio_features"], start, num_frames),
            }
            batch = {name: tensor[None].to(device) for name, tensor in batch.items()}
            latents = sample_latents(
                unet.to(device),
                batch,
                num_inference_steps,
                guidance_scale,
                seed,
                lambda: progress.advance(task),
            )
            pixels = decode_latents(vae, latents[0].transpose(0, 1)).cpu()
            made = pixels.add(1).mul(127.5).round().clamp(0, 255)
            # What was not masked stays the clip's own.
            frames.append(torch.where(mask.bool(), tensors["frames"][window].float(), made))
    pictures = torch.cat(frames).permute(0, 2, 3, 1).to(torch.uint8).numpy()
    samples = len(clip.wave) // len(clip.frames) * len(pictures)
    return Clip(clip.name, np.ascontiguousarray(pictures), clip.wave[:samples])


def _prepared_mask(recipe: Recipe) -> Tensor | None:
    """The mask (H, W) of the clips that a UNet was trained on, unless they were drawn or are elsewhere."""
    folder = Path(recipe.data.folder)
    if recipe.data.synthetic is not None or not (folder / "index.json").is_file():
        return None
    return PreparedClips.open(folder).mask


def _held_out_clip(recipe: Recipe) -> Clip:
    settings = recipe.data.synthetic
    if settings is None:
        raise UserError("--clip: must be given, since the recipe's clips are not drawn; name an aligned mp4")
    clips = synthetic_clips(
        settings.num_speakers, settings.clips_per_speaker, settings.num_frames, settings.resolution, settings.seed
    )
    return list(clips)[-1]  # the last speakers are held out


if __name__ == "__main__":
    run_cli(main)
