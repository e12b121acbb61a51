"""Where a face is in each frame, and how it is cut out: landmarks to a similarity transform to an aligned picture.

Figures are those of LatentSync's affine step (https://github.com/bytedance/LatentSync, commit a229c39, Apache-2.0).
Coordinates are (x, y) in pixels, (0, 0) the upper left corner of the upper left pixel.
"""

from itertools import pairwise

import numpy as np
import numpy.typing as npt
from PIL import Image

from latentsync_ray.latentsync.data.media import FPS, Bytes

Points = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# Where left eyebrow, right eyebrow and nose are to lie on a canvas of this width and height.
TEMPLATE = ((17.0, 20.0), (58.0, 20.0), (37.5, 40.0))
CANVAS = (75.0, 100.0)

# Vertices of MediaPipe's face mesh: both edges of each eyebrow (left and right as in the picture), and those that
# usually stand for the nose among the 68 landmarks of dlib.
LEFT_EYEBROW = (46, 53, 52, 65, 55, 70, 63, 105, 66, 107)
RIGHT_EYEBROW = (276, 283, 282, 295, 285, 300, 293, 334, 296, 336)
NOSE = (168, 197, 5, 4, 75, 97, 2, 326, 305)

SMOOTHING_FRAMES = 1.0
"""Standard deviation of the Gaussian that steadies the landmarks."""

MAX_JUMP = 0.5
"""How far a landmark moves from one frame to the next before it counts as another face, in eyebrow distances."""

MAX_CHANGE = 27.0
"""How much two frames differ before they count as two scenes, of 255 on average."""

THUMBNAIL_STEP = 16

MIN_CLIP_FRAMES, MAX_CLIP_FRAMES = FPS, 10 * FPS

MIN_MASKED_INSIDE, MIN_INSIDE = 0.98, 0.9
"""Share of the masked region, and of the whole cut-out, that must lie inside the picture. What does not is grey."""


def anchors(mesh: Points) -> Points:
    """Reduces a face mesh (478, 2) to the three points (3, 2) that the alignment holds on to."""
    return np.stack([mesh[list(part)].mean(axis=0) for part in (LEFT_EYEBROW, RIGHT_EYEBROW, NOSE)])


def thumbnail(frame: Bytes) -> npt.NDArray[np.int16]:
    """Keeps every 16th row and column of a frame, for `is_cut`; int16, so that differences fit."""
    return frame[::THUMBNAIL_STEP, ::THUMBNAIL_STEP].astype(np.int16)


def is_cut(before: npt.NDArray[np.int16], after: npt.NDArray[np.int16]) -> bool:
    """Tells whether another scene has begun between two thumbnails."""
    return before.shape != after.shape or float(np.abs(after - before).mean()) > MAX_CHANGE


def stretches(points: Points, cuts: Mask) -> list[range]:
    """Chooses the frames that become clips: one face, one scene, from 1 to 10 seconds.

    Args:
        points: (N, 3, 2), each frame's three points; NaN where no face was found.
        cuts: (N,), whether another scene begins with a frame.

    Returns:
        Frame numbers, in order; what is longer than a clip may be is shared out evenly.
    """
    starts = np.ones(len(points) + 1, bool)
    starts[1:-1] = cuts[1:] | ~_is_steady(points)
    runs = []
    for start, stop in pairwise(np.flatnonzero(starts).tolist()):
        length = stop - start
        if length < MIN_CLIP_FRAMES:  # so also a frame without a face, which is steady with no other
            continue
        num_parts = -(-length // MAX_CLIP_FRAMES)
        bounds = [start + i * length // num_parts for i in range(num_parts + 1)]
        runs += [range(*bound) for bound in pairwise(bounds)]
    return runs


def _is_steady(points: Points) -> Mask:
    """Tells of (N, 3, 2) for each frame but the first whether it shows the face of the one before; (N - 1,)."""
    distance = np.linalg.norm(points[:, 1] - points[:, 0], axis=1)
    moved = np.linalg.norm(np.diff(points, axis=0), axis=2).max(axis=1)
    steady: Mask = moved <= MAX_JUMP * distance[:-1]  # never for NaN
    return steady


def smooth(points: Points) -> Points:
    """Smooths points (F, 3, 2) over time by a Gaussian, which is cut off at either end."""
    radius = int(4 * SMOOTHING_FRAMES)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / SMOOTHING_FRAMES) ** 2)
    times = np.arange(len(points))[:, None] + offsets
    inside = (times >= 0) & (times < len(points))
    shares = np.where(inside, weights, 0)
    shares /= shares.sum(axis=1, keepdims=True)
    smoothed: Points = np.einsum("fo,fopc->fpc", shares, points[times.clip(0, len(points) - 1)])
    return smoothed


def similarity_transform(source: Points, target: Points) -> Points:
    """Finds the rotation, uniform scale and shift that take points to others with the least squared error.

    Umeyama, Least-squares estimation of transformation parameters between two point patterns, PAMI 1991,
    equations 34 to 42; reflections are excluded.

    Args:
        source: (N, 2), not all the same.
        target: (N, 2).

    Returns:
        (2, 3): `matrix[:, :2] @ point + matrix[:, 2]`.
    """
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    centred = source - source_mean
    covariance = (target - target_mean).T @ centred / len(source)
    u, singular_values, vt = np.linalg.svd(covariance)
    signs = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = u @ np.diag(signs) @ vt
    scale = (singular_values * signs).sum() / centred.var(axis=0).sum()
    return np.column_stack([scale * rotation, target_mean - scale * rotation @ source_mean])


def alignment(points: Points, resolution: int) -> Points:
    """Finds the transform (2, 3) that takes a face's three points (3, 2) to the template, stretched to a square."""
    stretch = resolution / np.array(CANVAS)
    return similarity_transform(points, np.array(TEMPLATE)) * stretch[:, None]


def lies_inside(transform: Points, size: tuple[int, int], mask: Mask) -> bool:
    """Tells whether enough of a cut-out, above all of what is to be generated, lies inside the picture.

    Args:
        transform: (2, 3), from the picture's coordinates to the cut-out's.
        size: height and width of the picture.
        mask: (R, R) of the cut-out, True where it is to be generated.
    """
    resolution, (height, width) = len(mask), size
    matrix = np.linalg.inv(np.vstack([transform, [0, 0, 1]]))[:2]
    ends = np.array([0, resolution])
    centres = np.arange(resolution) + 0.5
    for places in (ends, centres):  # the corners are enough where all of them lie inside
        x, y = (row[0] * places[None, :] + row[1] * places[:, None] + row[2] for row in matrix)
        inside = (x >= 0) & (x <= width) & (y >= 0) & (y <= height)
        if inside.all():
            return True
    return bool(inside[mask].mean() >= MIN_MASKED_INSIDE and inside.mean() >= MIN_INSIDE)


def warp(frame: Bytes, transform: Points, resolution: int) -> Bytes:
    """Cuts an aligned face out of a frame.

    Args:
        frame: uint8 (H, W, 3).
        transform: (2, 3), from the frame's coordinates to the picture's.
        resolution: height and width of the picture.

    Returns:
        uint8 (resolution, resolution, 3), bicubic; averaged beforehand where the face is at least twice as large,
        grey beyond the frame's edges.
    """
    inverse = np.linalg.inv(np.vstack([transform, [0, 0, 1]]))[:2]
    picture = Image.fromarray(frame)
    shrinking = int(np.linalg.norm(inverse[:, :2], axis=0).min())
    if shrinking > 1:
        picture = picture.reduce(shrinking)
        inverse = inverse / shrinking
    return np.asarray(
        picture.transform(
            (resolution, resolution),
            Image.Transform.AFFINE,
            inverse.flatten().tolist(),
            resample=Image.Resampling.BICUBIC,
            fillcolor=(127, 127, 127),
        )
    )
