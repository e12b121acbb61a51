"""Footage as a camera gives it to aligned clips: a face is found in one pass over a video and cut out in a second.

Two passes cost decoding twice, but what is kept of the first is a few numbers a frame, so that a video of any length
is smoothed, split and judged as a whole before anything of it is written.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from latentsync_ray.config.errors import UserError
from latentsync_ray.latentsync.data.container import reading
from latentsync_ray.latentsync.data.facemesh import FaceMesh, has_small_face
from latentsync_ray.latentsync.data.faces import (
    MIN_CLIP_FRAMES,
    MIN_INSIDE,
    MIN_MASKED_INSIDE,
    Mask,
    Points,
    alignment,
    anchors,
    is_cut,
    lies_inside,
    smooth,
    stretches,
    thumbnail,
    warp,
)
from latentsync_ray.latentsync.data.media import FPS, SAMPLES_PER_FRAME, Clip
from latentsync_ray.latentsync.data.pictures import read_frames
from latentsync_ray.latentsync.data.quality import picture_warnings, sound_warnings
from latentsync_ray.latentsync.data.sound import Sound, Stretch, read_sound

NUM_CLOSE_LOOKS = 3
"""Frames without a face that are searched for small ones, where a video is left out."""


@dataclass(frozen=True, eq=False)
class FaceTrack:
    """Where the face is in each frame of a video.

    Attributes:
        numbers: int64 (N,), the frames' numbers at 25 a second; not consecutive where the clock jumps.
        points: (N, 3, 2) in pixels, NaN where there is none.
        cuts: (N,), whether another scene begins with a frame, or the clock has jumped before it.
        sizes: height and width of each frame.
    """

    numbers: npt.NDArray[np.int64]
    points: Points
    cuts: Mask
    sizes: Sequence[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class _Cutout:
    """A stretch of frames that becomes a clip: their places in the track, the transform of each, and its sound."""

    frames: range
    transforms: Sequence[Points]
    sound: Stretch


def read_footage(
    path: Path, resolution: int, generated: Mask, face_models: Path | None
) -> tuple[int, Iterator[Clip]]:
    """Finds the stretches of a video that show one face, and cuts them out as aligned clips with their sound.

    Args:
        path: a file that FFmpeg can read; its sound is what `read_sound` finds.
        resolution: height and width of the clips' frames.
        generated: (resolution, resolution), the part of a clip's frame that is to be generated; a frame that has too
            much of it beyond the picture's edge does not count.
        face_models: as `FaceMesh` takes it.

    Returns:
        How many clips there are, and the clips, one at a time, named by their number.

    Raises:
        UserError: if the file cannot be read, lacks picture or sound, is truncated, or shows no face for a second.
    """
    with reading(path):
        sound = read_sound(path)  # first, since it is soon seen that there is none
        track = find_face(path, sound.stretches[-1].stop // SAMPLES_PER_FRAME, face_models)
        cutouts, num_beyond = _choose(track, sound, resolution, generated)
        if not cutouts:
            raise UserError(_no_face(path, track, num_beyond, face_models))
        return len(cutouts), _cut_out(path, track, sound, cutouts, resolution)


def find_face(path: Path, num_frames: int, face_models: Path | None) -> FaceTrack:
    """Follows the face in a video.

    Args:
        path: the video.
        num_frames: as `read_frames` takes it.
        face_models: as `FaceMesh` takes it.

    Raises:
        UserError: if the file cannot be read as a video, or has no such frame.
    """
    numbers, points, cuts, sizes, before = [], [], [], [], None
    with FaceMesh(face_models) as face_mesh:
        for number, frame in read_frames(path, num_frames, may_jump=True):
            mesh = face_mesh(frame)
            points.append(np.full((3, 2), np.nan) if mesh is None else anchors(mesh))
            after = thumbnail(frame)
            cuts.append(before is not None and (number != numbers[-1] + 1 or is_cut(before, after)))
            before = after
            numbers.append(number)
            sizes.append(frame.shape[:2])
    if not numbers:
        raise UserError(f"{path}: picture and sound have less than one frame (1/{FPS} s) in common; remove it")
    return FaceTrack(np.array(numbers), np.stack(points), np.array(cuts), sizes)


def _choose(track: FaceTrack, sound: Sound, resolution: int, generated: Mask) -> tuple[list[_Cutout], int]:
    """Chooses what becomes clips. Returns also how many frames were left out for lying beyond the picture's edge."""
    points, cuts = track.points.copy(), track.cuts.copy()
    heard = np.full(len(points), -1)
    for number, part in enumerate(sound.stretches):
        starts = track.numbers * SAMPLES_PER_FRAME
        heard[(starts >= part.start) & (starts + SAMPLES_PER_FRAME <= part.stop)] = number
    points[heard < 0] = np.nan
    cuts[1:] |= np.diff(heard) != 0

    num_beyond = 0
    while True:  # what is left out changes what the rest is smoothed with
        found = [
            _Cutout(
                frames,
                [alignment(face, resolution) for face in smooth(points[frames.start : frames.stop])],
                sound.stretches[heard[frames.start]],
            )
            for frames in stretches(points, cuts)
        ]
        beyond = [
            frame
            for cutout in found
            for frame, transform in zip(cutout.frames, cutout.transforms, strict=True)
            if not lies_inside(transform, track.sizes[frame], generated)
        ]
        if not beyond:
            return found, num_beyond
        points[beyond] = np.nan
        num_beyond += len(beyond)


def _no_face(path: Path, track: FaceTrack, num_beyond: int, face_models: Path | None) -> str:
    """The reason why a video is left out."""
    faceless = np.flatnonzero(np.isnan(track.points[:, 0, 0]))
    num_frames = len(track.points)
    reason = f"shows one in {num_frames - len(faceless)} of {num_frames} frames with sound"
    if num_beyond:
        reason += (
            f", in {num_beyond} of them cut off by the picture's edge ({MIN_MASKED_INSIDE:.0%} of what is to be"
            f" generated and {MIN_INSIDE:.0%} of the cut-out must lie inside)"
        )
    if _has_small_face(path, faceless, face_models):
        reason += "; faces were found that are too small (10 % of the picture's width is the limit)"
    return f"{path}: must show one face for {MIN_CLIP_FRAMES / FPS:g} s on end, {reason}; remove it"


def _has_small_face(path: Path, faceless: npt.NDArray[np.intp], face_models: Path | None) -> bool:
    """Looks closely at some of the frames, by place in the track, in which no face was found."""
    chosen = {int(part[len(part) // 2]) for part in np.array_split(faceless, NUM_CLOSE_LOOKS) if len(part)}
    until = max(chosen, default=-1) + 1
    frames = enumerate(islice(read_frames(path, may_jump=True), until))
    return any(has_small_face(frame, face_models) for place, (_, frame) in frames if place in chosen)


def _cut_out(
    path: Path, track: FaceTrack, sound: Sound, cutouts: Sequence[_Cutout], resolution: int
) -> Iterator[Clip]:
    with reading(path):
        frames = enumerate(frame for _, frame in read_frames(path, int(track.numbers[-1]) + 1, may_jump=True))
        for number, cutout in enumerate(cutouts):
            kept = (frame for i, frame in frames if i >= cutout.frames.start)
            pictures = np.stack(
                [
                    warp(frame, transform, resolution)
                    for frame, transform in zip(islice(kept, len(cutout.frames)), cutout.transforms, strict=True)
                ]
            )
            start = int(track.numbers[cutout.frames.start]) * SAMPLES_PER_FRAME - cutout.sound.start
            wave = cutout.sound.wave[start : start + len(pictures) * SAMPLES_PER_FRAME]
            warnings = (*picture_warnings(pictures), *sound_warnings(wave, sound.cancels))
            yield Clip(f"{number:04d}", pictures, wave, warnings)
