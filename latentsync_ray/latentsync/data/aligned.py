"""Files that hold one aligned clip each."""

from pathlib import Path

import numpy as np

from latentsync_ray.config.errors import UserError
from latentsync_ray.latentsync.data.container import jumped, printable, reading
from latentsync_ray.latentsync.data.media import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, Clip, resize_frame
from latentsync_ray.latentsync.data.pictures import read_frames
from latentsync_ray.latentsync.data.quality import picture_warnings, sound_warnings
from latentsync_ray.latentsync.data.sound import read_sound


def read_clip(path: Path, resolution: int | None = None) -> Clip:
    """Reads a video with sound, resampled to 25 frames a second and 16 kHz mono.

    What is longer, picture or sound, is cut.

    Args:
        path: a file that FFmpeg can read; its sound is what `read_sound` finds.
        resolution: height and width to resize each frame to as it is decoded; None leaves them as they are.

    Returns:
        The clip, named by the file's stem.

    Raises:
        UserError: if the file cannot be read, lacks picture or sound, ends before the length it claims, or its clock
            jumps.
    """
    with reading(path):
        sound = read_sound(path)
        first, *others = sound.stretches
        if first.start > 0 or others:
            raise jumped(path, "audio", 0 if first.start > 0 else first.stop / SAMPLE_RATE)
        wanted = len(first.wave) // SAMPLES_PER_FRAME
        frames = [
            pixels if resolution is None else resize_frame(pixels, resolution)
            for _, pixels in read_frames(path, wanted)
        ]
        if not frames:
            raise UserError(f"{path}: picture and sound have less than one frame (1/{FPS} s) in common; remove it")
        wave = first.wave[: len(frames) * SAMPLES_PER_FRAME]
        pictures = np.stack(frames)
        warnings = (*picture_warnings(pictures), *sound_warnings(wave, sound.cancels))
        return Clip(printable(path.stem), pictures, wave, warnings)
