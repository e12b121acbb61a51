"""Footage as a camera gives it to aligned clips: a face is found in one pass over a video and cut out in a second.

Two passes cost decoding twice, but what is kept of the first is a few numbers a frame, so that a video of any length
is smoothed, split and judged as a whole before anything of it is written.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from latentsync_ray.config.errors import UserError
from latentsync_ray.latentsync.data.facemesh import FaceMesh
from latentsync_ray.latentsync.data.faces import (
    MIN_CLIP_FRAMES,
    Points,
    alignment,
    anchors,
    is_cut,
    smooth,
    stretches,
    thumbnail,
    warp,
)
from latentsync_ray.latentsync.data.media import FPS, SAMPLES_PER_FRAME, Clip, Floats, read_frames, read_wave


def read_footage(path: Path, resolution: int, face_models: Path | None) -> tuple[int, Iterator[Clip]]:
    """Finds the stretches of a video that show one face, and cuts them out as aligned clips with their sound.

    Args:
        path: a file that FFmpeg can read; its sound is what `read_wave` finds.
        resolution: height and width of the clips' frames.
        face_models: as `FaceMesh` takes it.

    Returns:
        How many clips there are, and the clips, one at a time, named by their number.

    Raises:
        UserError: if the file cannot be read, lacks picture or sound, is truncated, or shows no face for a second.
    """
    wave = read_wave(path)  # first, since it is soon seen that there is none
    points, cuts = find_face(path, face_models)
    num_frames = min(len(points), len(wave) // SAMPLES_PER_FRAME)
    found = stretches(points[:num_frames], cuts[:num_frames])
    if not found:
        with_face = int((~np.isnan(points[:num_frames, 0, 0])).sum())
        raise UserError(
            f"{path}: must show one face for {MIN_CLIP_FRAMES / FPS:g} s on end, shows one in {with_face} of"
            f" {num_frames} frames with sound; remove it"
        )
    return len(found), _cut_out(path, wave, points, found, resolution)


def find_face(path: Path, face_models: Path | None) -> tuple[Points, npt.NDArray[np.bool_]]:
    """Follows the face in a video.

    Args:
        path: the video.
        face_models: as `FaceMesh` takes it.

    Returns:
        points: (N, 3, 2) in pixels, NaN where there is none.
        cuts: (N,), whether another scene begins with a frame.

    Raises:
        UserError: if the file cannot be read as a video.
    """
    points, cuts, before = [], [], None
    with FaceMesh(face_models) as face_mesh:
        for frame in read_frames(path):
            mesh = face_mesh(frame)
            points.append(np.full((3, 2), np.nan) if mesh is None else anchors(mesh))
            after = thumbnail(frame)
            cuts.append(before is not None and is_cut(before, after))
            before = after
    return np.stack(points), np.array(cuts)


def _cut_out(path: Path, wave: Floats, points: Points, found: list[range], resolution: int) -> Iterator[Clip]:
    frames = enumerate(read_frames(path))
    for number, stretch in enumerate(found):
        transforms = [alignment(face, resolution) for face in smooth(points[stretch.start : stretch.stop])]
        kept = (frame for i, frame in frames if i >= stretch.start)
        pictures = [
            warp(frame, transform, resolution)
            for frame, transform in zip(islice(kept, len(stretch)), transforms, strict=True)
        ]
        samples = slice(stretch.start * SAMPLES_PER_FRAME, stretch.stop * SAMPLES_PER_FRAME)
        yield Clip(f"{number:04d}", np.stack(pictures), wave[samples])
