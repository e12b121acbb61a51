"""A prepared set of clips on disk, and the samples that training and validation draw from it.

A set is a folder: index.json, mask.safetensors and one clips/*.safetensors a clip, all written by
`latentsync-ray preprocess`. A sample is a pure function of its arguments, so any rank of any run can draw it.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentsync_ray.cli import program
from latentsync_ray.config.errors import UserError
from latentsync_ray.config.plain import Settings, settings
from latentsync_ray.core.atomic import new_file
from latentsync_ray.core.hashing import digest, file_sha256
from latentsync_ray.latentsync.data.media import (
    audio_windows,
    first_mel_column,
    num_mel_columns,
    resize_mask,
)

FORMAT = 2
"""Since 2 a clip holds its sound."""
_PREPARE = f"({program('preprocess')})"
_AGAIN = f"prepare the set again {_PREPARE}, in another folder or with this one removed"
Split = Literal["train", "validation"]

# Clips kept mapped into memory: far below Linux's usual limit of 65,530 mappings a process.
MAX_OPEN_CLIPS = 4096


@dataclass(frozen=True)
class ClipRecord:
    """One clip of a prepared set: `file` lies below the set's folder, `sha256` is the file's."""

    name: str
    file: str
    num_frames: int
    split: str
    sha256: str


@dataclass(frozen=True)
class Index:
    """What index.json says.

    Attributes:
        format: version of the layout.
        source: names the inputs and settings that the set was prepared from.
        resolution: height and width of the frames in pixels.
        fps: frames a second.
        latent_shape: (C, h, w) of a frame's latents.
        audio_shape: (L, D): layers and width of the audio encoder's states.
        mask_sha256: SHA-256 of mask.safetensors.
        vae_sha256: names the autoencoder's weights (`weights_sha256`).
        audio_encoder_sha256: names the audio encoder's weights.
        clips: sorted by name.
        posterior_scaling: (shift_factor, scaling_factor) of an autoencoder with a posterior, which every clip then
            holds, and from which samples draw their latents; None where latents are all that there is.
    """

    format: int
    source: str
    resolution: int
    fps: int
    latent_shape: list[int]
    audio_shape: list[int]
    mask_sha256: str
    vae_sha256: str
    audio_encoder_sha256: str
    clips: list[ClipRecord]
    posterior_scaling: list[float] | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all that a sample depends on: the prepared files' contents, splits and settings."""
        return digest({key: value for key, value in self.as_json().items() if key != "source"})

    def write(self, folder: Path) -> None:
        """Writes `folder`/index.json."""
        text = json.dumps({"fingerprint": self.fingerprint, **self.as_json()}, indent=1)
        with new_file(folder / "index.json") as made:
            made.write_text(text)

    @classmethod
    def read(cls, folder: Path) -> "Index":
        """Reads `folder`/index.json.

        Raises:
            UserError: if there is none, or it is not as `write` left it.
        """
        path = folder / "index.json"
        try:
            values = json.loads(path.read_text())
        except OSError as error:
            raise UserError(
                f"{path}: cannot be read ({error.strerror}); name a prepared set, or make one {_PREPARE}"
            ) from error
        except ValueError as error:
            raise UserError(f"{path}: is not JSON ({error}); {_AGAIN}") from error
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            found = values.get("format") if isinstance(values, dict) else None
            raise UserError(f"{path}: format must be {FORMAT}, is {found}; {_AGAIN}")
        try:
            stored_fingerprint = values.pop("fingerprint")
            index = cls(**{**values, "clips": [ClipRecord(**clip) for clip in values["clips"]]})
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: fields are missing or unknown ({error}); {_AGAIN}") from error
        if index.fingerprint != stored_fingerprint:
            raise UserError(
                f"{path}: fingerprint must be {index.fingerprint[:12]}, that of the contents, is"
                f" {str(stored_fingerprint)[:12]}: the file was changed; {_AGAIN}"
            )
        return index

    def as_json(self) -> Settings:
        """Plain values, as they are written."""
        values = settings(self)
        if self.posterior_scaling is None:
            del values["posterior_scaling"]  # sets made before there were posteriors keep their fingerprints
        return values


def save_clip(folder: Path, name: str, tensors: dict[str, Tensor]) -> ClipRecord:
    """Writes one clip of a set.

    Args:
        folder: the set's.
        name: the clip's.
        tensors: frames uint8 (F, 3, H, W), latents and masked_latents float32 (F, C, h, w), audio_features float32
            (2 * F, L, D), mel float32 (80, 16 * F // 5 + 1), wave int16 (640 * F,) from `data.media.to_pcm`; of an
            autoencoder with a posterior also latents_posterior and masked_latents_posterior float32
            (F, 2 * C, h, w), mean and log-variance before scaling.

    Returns:
        Its record for the index, as a clip to train on.
    """
    # The readable part alone need not be unique: "a/b" and "a_b", or "A" and "a" on some filesystems.
    readable = re.sub(r"[^A-Za-z0-9.-]+", "_", name)[:60]
    file = f"clips/{readable}-{hashlib.sha256(name.encode()).hexdigest()[:16]}.safetensors"
    path = folder / file
    with new_file(path) as made:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, made)
    return ClipRecord(name, file, len(tensors["frames"]), "train", file_sha256(path))


class PreparedClips:
    """A prepared set, open for drawing samples.

    Attributes:
        folder: where it lies.
        index: what it holds.
        train: the records of the clips to train on.
        validation: the records of the clips held out.
        mask: float32 (H, W) as drawn over the frames; 1 = kept, 0 = to be generated.
    """

    def __init__(self, folder: Path, index: Index, mask: Tensor):
        self.folder = folder
        self.index = index
        self.train = [clip for clip in index.clips if clip.split == "train"]
        self.validation = [clip for clip in index.clips if clip.split == "validation"]
        self.mask = mask
        _, height, width = index.latent_shape
        self._latent_mask = resize_mask(mask, (height, width))
        self._verified: set[str] = set()
        self._tensors = lru_cache(maxsize=MAX_OPEN_CLIPS)(self._load)
        self._usable = cache(self.usable)

    @classmethod
    def open(cls, folder: Path | str) -> "PreparedClips":
        """Opens a prepared set; clips themselves are read, and checked, when they are first drawn.

        Raises:
            UserError: if the index or the mask is missing or damaged, or a clip's file is missing.
        """
        folder = Path(folder)
        index = Index.read(folder)
        for clip in index.clips:
            if not (folder / clip.file).is_file():
                raise UserError(f"{folder / clip.file}: the file of clip {clip.name} is missing; {_AGAIN}")
        mask_file = folder / "mask.safetensors"
        if not mask_file.is_file() or file_sha256(mask_file) != index.mask_sha256:
            raise UserError(f"{mask_file}: is missing or differs from what was prepared; {_AGAIN}")
        return cls(folder, index, load_file(mask_file)["mask"])

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all that a sample depends on."""
        return self.index.fingerprint

    def train_sample(self, seed: int, global_step: int, index: int, num_frames: int) -> dict[str, Any]:
        """Draws one training sample; a pure function of its arguments and the set.

        Clip, window and reference window are uniform among those that fit. Where there is a posterior, the three
        kinds of latents are drawn from it independently, as encoding within a training step would.

        Args:
            seed: the run's.
            global_step: the optimizer step that the sample is for.
            index: the sample's place in the global batch.
            num_frames: F, the window's length.

        Returns:
            latents, masked_latents, ref_latents: float32 (C, F, h, w), scaled.
            masks: float32 (1, F, h, w); 1 = kept, 0 = to be generated.
            audio_features: float32 (F, 10 * L, D), what each frame's cross-attention sees.
            mel: float32 (1, 80, ceil(3.2 * F)).
            frames: uint8 (3, F, H, W).
            name: the clip's, a str.

        Raises:
            UserError: if no clip to train on has that many frames, or the drawn one's file is damaged.
        """
        usable = self._usable("train", num_frames)
        rng = keyed_generator(seed, "train_sample", global_step, index)
        clip = usable[rng.integers(len(usable))]
        start = int(rng.integers(clip.num_frames - num_frames + 1))
        return self._sample(clip, start, num_frames, rng)

    def validation_samples(self, num_samples: int, num_frames: int, seed: int) -> list[dict[str, Any]]:
        """Draws the fixed samples to validate on, spread over the held-out clips and over each one's length.

        Args:
            num_samples: how many.
            num_frames: F, the windows' length.
            seed: chooses the windows.

        Returns:
            Samples as `train_sample` gives them.

        Raises:
            UserError: if no held-out clip has that many frames, or a file is damaged.
        """
        usable = self._usable("validation", num_frames)
        chosen = [i * len(usable) // num_samples for i in range(num_samples)]
        samples = []
        for i, c in enumerate(chosen):
            rng = keyed_generator(seed, "validation_samples", i)
            # One start from each of as many equal stretches of the clip as it gives samples.
            stretch, num_stretches = i - chosen.index(c), chosen.count(c)
            num_starts = usable[c].num_frames - num_frames + 1
            start = int((stretch + rng.random()) / num_stretches * num_starts)
            samples.append(self._sample(usable[c], start, num_frames, rng))
        return samples

    def window(self, clip: ClipRecord, start: int, num_frames: int) -> tuple[Tensor, Tensor]:
        """Returns a window's frames uint8 (3, F, H, W) and its mel float32 (1, 80, ceil(3.2 * F)).

        Raises:
            UserError: if the clip's file is damaged.
        """
        tensors = self._tensors(clip)
        columns = slice(first_mel_column(start), first_mel_column(start) + num_mel_columns(num_frames))
        return _frames_second(tensors["frames"][start : start + num_frames]), tensors["mel"][None, :, columns].clone()

    def whole(self, clip: ClipRecord) -> dict[str, Tensor]:
        """Returns all that is held of a clip, as `save_clip` was given it: read-only, and read as it is looked at.

        Raises:
            UserError: if the clip's file is damaged.
        """
        return self._tensors(clip)

    def usable(self, split: Split, num_frames: int) -> list[ClipRecord]:
        """Returns the clips of a split that hold a window of `num_frames`.

        Raises:
            UserError: if there is none.
        """
        clips = self.train if split == "train" else self.validation
        usable = [clip for clip in clips if clip.num_frames >= num_frames]
        if not usable:
            longest = max((clip.num_frames for clip in clips), default=0)
            raise UserError(
                f"{self.folder / 'index.json'}: no {split} clip has num_frames = {num_frames} frames, the longest"
                f" of {len(clips)} has {longest}; lower num_frames or prepare longer clips"
            )
        return usable

    def _sample(self, clip: ClipRecord, start: int, num_frames: int, rng: np.random.Generator) -> dict[str, Any]:
        tensors = self._tensors(clip)
        ref_start = _draw_ref_start(clip.num_frames, start, num_frames, rng)
        window, ref_window = slice(start, start + num_frames), slice(ref_start, ref_start + num_frames)
        columns = slice(first_mel_column(start), first_mel_column(start) + num_mel_columns(num_frames))
        return {
            "latents": _frames_second(self._draw_latents(tensors, "latents", window, rng)),
            "masked_latents": _frames_second(self._draw_latents(tensors, "masked_latents", window, rng)),
            "ref_latents": _frames_second(self._draw_latents(tensors, "latents", ref_window, rng)),
            "masks": self._latent_mask.repeat(1, num_frames, 1, 1),
            "audio_features": audio_windows(tensors["audio_features"], start, num_frames),
            "mel": tensors["mel"][None, :, columns].clone(),
            "frames": _frames_second(tensors["frames"][window]),
            "name": clip.name,
        }

    def _draw_latents(self, tensors: dict[str, Tensor], key: str, window: slice, rng: np.random.Generator) -> Tensor:
        """Draws a window's scaled latents from their posterior; without one they are what they are."""
        if self.index.posterior_scaling is None:
            return tensors[key][window]
        mean, logvar = tensors[f"{key}_posterior"][window].chunk(2, dim=1)
        eps = torch.from_numpy(rng.standard_normal(mean.shape, dtype=np.float32))
        shift, scale = self.index.posterior_scaling
        return (mean + torch.exp(0.5 * logvar) * eps - shift) * scale

    def _load(self, clip: ClipRecord) -> dict[str, Tensor]:
        """Maps a clip's file into memory, checking it the first time; what no sample shows is not read again."""
        path = self.folder / clip.file
        if clip.file not in self._verified:
            try:
                found = file_sha256(path)
            except OSError as error:
                raise UserError(f"{path}: cannot be read ({error.strerror}); {_AGAIN}") from error
            if found != clip.sha256:
                raise UserError(
                    f"{path}: SHA-256 must be {clip.sha256[:12]}, is {found[:12]}: the file is damaged; {_AGAIN}"
                )
            self._verified.add(clip.file)
        tensors: dict[str, Tensor] = load_file(path)
        return tensors


def keyed_generator(seed: int, purpose: str, *key: int) -> np.random.Generator:
    """Returns a generator that depends on its arguments alone (counter-based Philox), never on earlier draws.

    Args:
        seed: the run's, not negative.
        purpose: tells apart draws with the same key.
        key: such as (global_step, index).
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, crc32(purpose.encode()), *key])))


def _draw_ref_start(clip_frames: int, start: int, num_frames: int, rng: np.random.Generator) -> int:
    """Draws the reference window: without overlap where the clip is long enough, else as far away as can be."""
    last = clip_frames - num_frames
    distance = min(num_frames, max(start, last - start))
    num_before, num_after = max(0, start - distance + 1), max(0, last - start - distance + 1)
    drawn = int(rng.integers(num_before + num_after))
    return drawn if drawn < num_before else start + distance + drawn - num_before


def _frames_second(window: Tensor) -> Tensor:
    """Copies (F, C, H, W) out of the mapped file as contiguous (C, F, H, W)."""
    return window.transpose(0, 1).clone(memory_format=torch.contiguous_format)
