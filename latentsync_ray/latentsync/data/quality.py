"""What may be wrong with a clip that can be used."""

import numpy as np

from latentsync_ray.latentsync.data.media import Bytes, Floats
from latentsync_ray.latentsync.data.sound import SILENCE

STILL = 1.0
"""How much frames differ from the first at most, of 255 on average, where a picture counts as still."""

_STEP = 4


def picture_warnings(frames: Bytes) -> list[str]:
    """Says of frames uint8 (F, H, W, 3) if they show one still picture."""
    thinned = frames[:, ::_STEP, ::_STEP].astype(np.int16)
    is_still = all(np.abs(frame - thinned[0]).mean() < STILL for frame in thinned)
    return ["its picture stands still"] if is_still else []


def sound_warnings(wave: Floats, cancels: bool) -> list[str]:
    """Says of a wave (N,) in [-1, 1] if it is silent.

    Args:
        wave: mono.
        cancels: whether mono is silent because the file's two channels cancel each other out.
    """
    if cancels:
        return ["its two channels cancel each other out in mono (opposite phase); turn one over, or keep one alone"]
    return ["its sound is silent"] if np.sqrt(np.mean(wave**2)) < SILENCE else []
