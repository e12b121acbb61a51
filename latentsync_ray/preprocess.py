"""Turns clips of aligned faces with sound into a prepared set: all that the frozen networks can compute beforehand.

python -m latentsync_ray.preprocess CLIPS OUT --vae FOLDER_OR_HUB_ID --audio-encoder FOLDER_OR_HUB_ID
"""

import argparse
import hashlib
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from rich.console import Console
from rich.progress import Progress
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.utils.logging import disable_progress_bar

from latentsync_ray.cli import run_cli
from latentsync_ray.config import UserError
from latentsync_ray.data.clips import (
    FORMAT,
    ClipRecord,
    Index,
    PreparedClips,
    file_sha256,
    save_clip,
)
from latentsync_ray.data.media import (
    AUDIO_STATES_PER_SECOND,
    FPS,
    SAMPLE_RATE,
    Clip,
    Floats,
    face_mask,
    mel_spectrogram,
    read_clip,
    read_mask,
    resize_frame,
    to_pixels,
)
from latentsync_ray.learn.autoencoder import (
    Autoencoder,
    encode_posterior,
    latent_factor,
    latent_scaling,
    load_autoencoder,
    weights_sha256,
)
from latentsync_ray.segment import digest

# A clip with fewer frames gives no window to train on.
MIN_FRAMES = 8
VALIDATION_SHARE = 0.2

CPU_BATCH_PIXELS = 256 * 256
"""On a CPU so much fits its caches: twice as fast as 16 times as much (AutoencoderTiny, 256 pixels)."""


@dataclass(frozen=True)
class ClipFile:
    """A clip that is still a file: `path`, to be called `name`."""

    name: str
    path: Path


def find_clips(folder: Path) -> list[ClipFile]:
    """Finds the .mp4 files in a folder and below, each named by its relative path without the suffix.

    Raises:
        UserError: if it is no folder, or holds none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: must be a folder of .mp4 clips, is none; give another")
    paths = [path for path in folder.rglob("*") if path.suffix.lower() == ".mp4" and path.is_file()]
    if not paths:
        raise UserError(f"{folder}: no .mp4 in it or below; give the folder that holds the clips")
    return [ClipFile(path.relative_to(folder).with_suffix("").as_posix(), path) for path in sorted(paths)]


class AudioEncoder:
    """Whisper's encoder, giving every layer's states rather than the last one's alone.

    Attributes:
        network: the frozen encoder, float32.
        shape: (L, D), how many states at a time (the first layer's input, each layer's output) and their width.
    """

    def __init__(self, source: str | Path):
        """Loads it.

        Args:
            source: a folder or a hub id, such as "openai/whisper-tiny", of a whole Whisper or its encoder alone.

        Raises:
            UserError: if there is no such model, it lacks weights, or it does not give 50 states a second.
        """
        source = str(source)
        disable_progress_bar()  # of the loading of weights: ours follows
        try:
            self._extractor = WhisperFeatureExtractor.from_pretrained(source)
            encoder_alone = WhisperConfig.from_pretrained(source).architectures == ["WhisperEncoder"]
            network_class = WhisperEncoder if encoder_alone else WhisperModel
            network, loading = network_class.from_pretrained(source, output_loading_info=True)
        except (OSError, ValueError, SafetensorError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"audio encoder {source}: cannot be loaded ({reason}); give a folder or hub id of a Whisper model"
            ) from error
        if loading["missing_keys"]:
            raise UserError(
                f"audio encoder {source}: weights lack {min(loading['missing_keys'])}; give a Whisper model"
            )
        self.network = (network if encoder_alone else network.encoder).float().requires_grad_(False).eval()
        config = self.network.config
        if config.max_source_positions != self._extractor.chunk_length * AUDIO_STATES_PER_SECOND:
            raise UserError(
                f"audio encoder {source}: max_source_positions must be {AUDIO_STATES_PER_SECOND} times chunk_length"
                f" ({self._extractor.chunk_length}), is {config.max_source_positions}; mend its config.json"
            )
        self.shape = (config.encoder_layers + 1, config.d_model)

        # transformers' own hidden_states end after the final normalisation, so inputs are listened to instead.
        self._states: list[Tensor] = []
        for module in [*self.network.layers, self.network.layer_norm]:
            module.register_forward_pre_hook(lambda _, args: self._states.append(args[0]))

    @torch.inference_mode()
    def __call__(self, wave: Floats) -> Tensor:
        """Encodes a wave (N,) at 16 kHz in chunks of the network's own length.

        Returns:
            float32 (N // 320, L, D), 50 a second: the input of each layer and of the final normalisation, as the
            reference's Whisper collects them (LatentSync, latentsync/whisper/whisper/model.py `AudioEncoder`).
        """
        chunks = []
        for start in range(0, len(wave), self._extractor.n_samples):
            chunk = wave[start : start + self._extractor.n_samples]
            mel = self._extractor(chunk, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
            self._states.clear()
            self.network(mel.to(self.network.device))
            chunks.append(torch.cat(self._states).transpose(0, 1).cpu())
        return torch.cat(chunks)[: len(wave) * AUDIO_STATES_PER_SECOND // SAMPLE_RATE]


def prepare(
    clips: Iterable[Clip | ClipFile],
    out: Path | str,
    *,
    vae: Path | str,
    audio_encoder: Path | str,
    resolution: int,
    validation: Sequence[str] = (),
    mask: Path | None = None,
) -> PreparedClips:
    """Prepares clips, says on standard error what became of them, and opens the result.

    A clip that cannot be used is named with the reason and left out. If `out` was made from the same clips,
    networks and settings already, nothing is done; otherwise it appears at once when all is prepared.

    Args:
        clips: their names must differ.
        out: folder to make.
        vae: folder or hub id of the autoencoder.
        audio_encoder: folder or hub id of a Whisper model.
        resolution: height and width in pixels to which frames are resized.
        validation: patterns (as of file names, `*` also matching `/`) of the names held out; without any, about
            every fifth clip, chosen by the hash of its name.
        mask: picture of the part to generate (black); None draws our own.

    Raises:
        UserError: if an argument does not fit, `out` holds something else, or no clip can be used.
    """
    out, clips = Path(out), sorted(clips, key=lambda clip: clip.name)
    names = [clip.name for clip in clips]
    if len(set(names)) < len(names):
        twice = next(a for a, b in pairwise(names) if a == b)
        raise UserError(f"clips: names must differ, two are called {twice}; rename one")
    held_out(names, validation)  # patterns that match nothing are better found now than in the end

    device = "cuda" if torch.cuda.is_available() else "cpu"
    vae_network, encoder = load_autoencoder(vae).to(device), AudioEncoder(audio_encoder)
    vae_network.to(memory_format=torch.channels_last)  # a third faster, on CPUs too
    encoder.network.to(device)
    factor = latent_factor(vae_network)
    if resolution <= 0 or resolution % factor:
        raise UserError(f"resolution: must be a multiple of {factor}, is {resolution}; give another")
    pixel_mask = face_mask(resolution) if mask is None else read_mask(mask, resolution)

    mask_file = save({"mask": pixel_mask})
    index = Index(
        format=FORMAT,
        source="",
        resolution=resolution,
        fps=FPS,
        latent_shape=[vae_network.config.latent_channels, resolution // factor, resolution // factor],
        audio_shape=list(encoder.shape),
        mask_sha256=hashlib.sha256(mask_file).hexdigest(),
        vae_sha256=weights_sha256(vae_network),
        audio_encoder_sha256=weights_sha256(encoder.network),
        clips=[],
        posterior_scaling=list(latent_scaling(vae_network)) if isinstance(vae_network, AutoencoderKL) else None,
    )
    contents = [[clip.name, _content_sha256(clip)] for clip in clips]
    index = replace(index, source=digest([index.as_json(), list(validation), contents]))
    console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    if _is_prepared(out, index.source):
        console.print(f"{out} was prepared from these clips with these settings already: nothing to do")
        return PreparedClips.open(out)

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        folder = Path(temporary) / "prepared"
        folder.mkdir()
        (folder / "mask.safetensors").write_bytes(mask_file)
        records = _prepare_clips(clips, folder, vae_network, encoder, pixel_mask, console)
        chosen = held_out([record.name for record in records], validation)
        records = [replace(record, split="validation") if record.name in chosen else record for record in records]
        replace(index, clips=records).write(folder)
        try:
            folder.rename(out)
        except OSError:  # another process was faster
            if not _is_prepared(out, index.source):
                raise
    console.print(f"prepared {len(records)} clips, left out {len(clips) - len(records)}: {out}")
    return PreparedClips.open(out)


def held_out(names: Sequence[str], patterns: Sequence[str]) -> set[str]:
    """Chooses the names of the clips to validate on.

    Args:
        names: all of them.
        patterns: what to hold out, as of file names; without any, about every fifth by the hash of its name.

    Raises:
        UserError: if nothing is left to train on or to validate on.
    """
    if len(names) < 2:
        raise UserError(
            f"clips: one to train on and one to validate on are needed, {len(names)} can be used; add clips"
        )
    if not patterns:
        ranked = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
        return set(ranked[: max(1, round(len(names) * VALIDATION_SHARE))])
    chosen = {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}
    if not 0 < len(chosen) < len(names):
        raise UserError(
            f"validation: {' '.join(patterns)} must match some of the {len(names)} clips and not all, matches"
            f" {len(chosen)}; names look like {names[0]}"
        )
    return chosen


def _content_sha256(clip: Clip | ClipFile) -> str:
    """Names what a clip is made from; files are not decoded for it."""
    if isinstance(clip, ClipFile):
        files = [clip.path, clip.path.with_suffix(".wav")]
        return digest([file_sha256(file) if file.is_file() else None for file in files])
    return hashlib.sha256(repr(clip.frames.shape).encode() + clip.frames.tobytes() + clip.wave.tobytes()).hexdigest()


def _is_prepared(out: Path, source: str) -> bool:
    """Tells whether `out` was made from `source`.

    Raises:
        UserError: if it holds something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / "index.json").is_file() or Index.read(out).source != source:
        raise UserError(
            f"{out}: holds something else than these clips prepared with these settings; choose another folder or"
            " remove it"
        )
    return True


def _prepare_clips(
    clips: Sequence[Clip | ClipFile],
    folder: Path,
    vae: Autoencoder,
    encoder: AudioEncoder,
    mask: Tensor,
    console: Console,
) -> list[ClipRecord]:
    """Prepares every clip that can be used; names the others on the console."""
    records = []
    with Progress(console=console, transient=True) as progress:
        for clip in progress.track(clips, description="preparing clips"):
            try:
                loaded = clip if isinstance(clip, Clip) else read_clip(clip.path, resolution=len(mask))
                if len(loaded.frames) < MIN_FRAMES:
                    raise UserError(
                        f"{clip.name}: must have {MIN_FRAMES} frames, has {len(loaded.frames)}; remove it"
                    )
                tensors = clip_tensors(loaded, vae, encoder, mask)
            except UserError as error:
                console.print(f"left out {error}")
            else:
                records.append(save_clip(folder, clip.name, tensors))
    return records


@torch.inference_mode()
def clip_tensors(clip: Clip, vae: Autoencoder, encoder: AudioEncoder, mask: Tensor) -> dict[str, Tensor]:
    """Computes what a prepared clip holds (`data.clips.save_clip`).

    Args:
        clip: Frames of any size.
        vae: From `load_autoencoder`.
        encoder: Gives the audio features.
        mask: (H, W) of the frames to prepare, 1 = kept.

    Raises:
        UserError: Something comes out that is not finite.
    """
    resized = np.stack([resize_frame(frame, len(mask)) for frame in clip.frames])
    frames = torch.from_numpy(resized).permute(0, 3, 1, 2).contiguous()
    encoded: dict[str, list[Tensor]] = defaultdict(list)
    for batch in torch.split(frames, 16 if vae.device.type == "cuda" else max(1, CPU_BATCH_PIXELS // len(mask) ** 2)):
        pixels = to_pixels(batch)
        # The hole is grey: 0 in [-1, 1] (golden img.masked_pixel_values).
        for key, pictures in {"latents": pixels, "masked_latents": pixels * mask}.items():
            latents, posterior = encode_posterior(vae, pictures.to(vae.device))
            encoded[key].append(latents.cpu())
            if posterior is not None:
                encoded[f"{key}_posterior"].append(posterior.cpu())
    tensors = {
        "frames": frames,
        **{key: torch.cat(batches) for key, batches in encoded.items()},
        "audio_features": encoder(clip.wave),
        "mel": torch.from_numpy(mel_spectrogram(clip.wave)),
    }
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{clip.name}: its {key} are not all finite; convert it again or remove it")
    return tensors


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m latentsync_ray.preprocess", description="Prepares clips for training."
    )
    parser.add_argument(
        "clips", type=Path, help="folder of .mp4 clips with sound, faces aligned, searched recursively"
    )
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--vae", required=True, help="folder or hub id of a diffusers autoencoder")
    parser.add_argument("--audio-encoder", required=True, help="folder or hub id of a Whisper model or its encoder")
    parser.add_argument("--resolution", type=int, default=256, help="height and width in pixels (%(default)s)")
    parser.add_argument(
        "--validation",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="clips to hold out, such as 'speaker4/*' (about every fifth)",
    )
    parser.add_argument("--mask", type=Path, help="picture, black where to generate (an ellipse over the lower face)")
    args = parser.parse_args()
    prepare(
        find_clips(args.clips),
        args.out,
        vae=args.vae,
        audio_encoder=args.audio_encoder,
        resolution=args.resolution,
        validation=args.validation,
        mask=args.mask,
    )


if __name__ == "__main__":
    run_cli(main)
