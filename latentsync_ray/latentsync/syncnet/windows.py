"""Windows of frames and sound from several places of one clip, for SyncNet's training and its accuracy."""

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor

from latentsync_ray.config.errors import UserError
from latentsync_ray.latentsync.data.clips import ClipRecord, PreparedClips, keyed_generator

Item = TypeVar("Item")


class SyncWindows:
    """Draws windows from a prepared set.

    Args:
        clips: the set.
        num_frames: F, the windows' length.
        windows_per_clip: W, how many a training sample holds.

    Raises:
        UserError: if no clip to train on is long enough.
    """

    def __init__(self, clips: PreparedClips, num_frames: int, windows_per_clip: int = 2):
        self._clips, self._num_frames, self._windows_per_clip = clips, num_frames, windows_per_clip
        # Windows that begin closer to each other would sound too much alike to be told apart.
        self._distance = max(1, num_frames // 2)
        self._span = num_frames + (windows_per_clip - 1) * self._distance
        self._usable = _long_enough(clips, "train", self._span)

    def train_windows(self, seed: int, step: int, index: int) -> tuple[Tensor, Tensor]:
        """Draws the windows of one training sample; a pure function of its arguments and the set.

        Args:
            seed: the run's.
            step: the optimizer step that the sample is for.
            index: the sample's place in the global batch.

        Returns:
            Frames uint8 (W, 3, F, H, W') and mel float32 (W, 1, 80, ceil(3.2 * F)), from W places of one clip that
            are at least half a window apart.
        """
        rng = keyed_generator(seed, "sync_windows", step, index)
        clip = self._usable[rng.integers(len(self._usable))]
        free = sorted(rng.integers(clip.num_frames - self._span + 1, size=self._windows_per_clip).tolist())
        return _windows(
            self._clips, clip, [start + i * self._distance for i, start in enumerate(free)], self._num_frames
        )


def held_out_windows(clips: PreparedClips, num_frames: int, max_windows: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Gives the windows on which a SyncNet's accuracy is measured, clip by clip.

    Windows follow each other without overlap. Where there are too many, evenly spread ones of evenly spread clips
    are taken.

    Args:
        clips: the set.
        num_frames: F, the windows' length.
        max_windows: most windows in all, at least 2.

    Returns:
        For each clip frames uint8 (W, 3, F, H, W') and mel float32 (W, 1, 80, ceil(3.2 * F)), W at least 2.

    Raises:
        UserError: if no held-out clip has two windows.
    """
    chosen = _evenly(_long_enough(clips, "validation", 2 * num_frames), max_windows // 2)
    quota = max_windows // len(chosen)

    def windows() -> Iterator[tuple[Tensor, Tensor]]:
        for clip in chosen:
            starts = list(range(0, clip.num_frames - num_frames + 1, num_frames))
            yield _windows(clips, clip, _evenly(starts, quota), num_frames)

    return windows()


def _long_enough(clips: PreparedClips, split: str, num_frames: int) -> list[ClipRecord]:
    candidates = [clip for clip in clips.index.clips if clip.split == split]
    usable = [clip for clip in candidates if clip.num_frames >= num_frames]
    if not usable:
        longest = max((clip.num_frames for clip in candidates), default=0)
        raise UserError(
            f"{clips.folder / 'index.json'}: no {split} clip has the {num_frames} frames that windows from different"
            f" places take, the longest of {len(candidates)} has {longest}; lower num_frames or prepare longer clips"
        )
    return usable


def _evenly(items: list[Item], most: int) -> list[Item]:
    count = min(len(items), most)
    return [items[i * len(items) // count] for i in range(count)]


def _windows(clips: PreparedClips, clip: ClipRecord, starts: list[int], num_frames: int) -> tuple[Tensor, Tensor]:
    frames, mels = zip(*(clips.window(clip, start, num_frames) for start in starts), strict=True)
    return torch.stack(frames), torch.stack(mels)
