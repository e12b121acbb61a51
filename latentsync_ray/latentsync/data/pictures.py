"""The picture of a video: 25 frames a second of what is on screen, upright and with square pixels."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from av.sidedata.sidedata import Type as SideDataType

from latentsync_ray.config.errors import UserError
from latentsync_ray.latentsync.data.container import MAX_JUMP_SECONDS, Clock, jumped, open_track, reading
from latentsync_ray.latentsync.data.media import FPS, Bytes

STAMP_TOLERANCE_SECONDS = 0.0015
"""What time stamps in whole milliseconds, such as Matroska's, may be late by: half of one, at the start and later."""

TRUNCATION_TOLERANCE_SECONDS = 0.2
"""Picture that a file may lack at its end, against the length it claims, before it counts as truncated."""

MAX_SAMPLE_ASPECT = 4.0

_HDR = {16: "PQ", 18: "HLG"}
"""Transfer characteristics (ITU-T H.273, table 3) that look flat and pale where they are taken for BT.709."""

_HDR_FILTERS = (
    "zscale=t=linear:npl=100,format=gbrpf32le,zscale=p=bt709,tonemap=hable:desat=0,"
    "zscale=t=bt709:m=bt709:r=tv,format=yuv420p"
)


@dataclass(frozen=True, eq=False)
class _Shown:
    """A decoded frame, and when it is on screen: seconds since the first one."""

    frame: Any
    start: float
    end: float


def read_frames(path: Path, num_frames: int | None = None, may_jump: bool = False) -> Iterator[tuple[int, Bytes]]:
    """Decodes a video frame by frame, resampled to 25 a second: each is what is on screen at its time.

    Args:
        path: a file that FFmpeg can read.
        num_frames: how many are wanted; later ones are decoded, but not given, to see whether the file is whole.
        may_jump: whether the numbers of the frames may leave out a stretch in which the clock has jumped.

    Yields:
        The frame's number, counted from the first frame on at 25 a second, and the frame, uint8 (H, W, 3), RGB.

    Raises:
        UserError: if the file cannot be read or lacks a picture, is HDR, or its clock jumps though it may not; at the
            end, if that comes before the length that the file claims.
    """
    with reading(path), open_track(path, "video") as (container, stream):
        aspect = _sample_aspect(path, stream)
        number, last, held = 0, None, None
        for shown in chain(_shown(container, stream), [None]):
            if held is not None:
                end = held.end if shown is None else shown.start
                if shown is not None and end - held.start > MAX_JUMP_SECONDS:
                    if not may_jump:
                        raise jumped(path, "video", held.start)
                    end = held.start + 1 / FPS
                pixels = None
                while number / FPS < end - STAMP_TOLERANCE_SECONDS and (num_frames is None or number < num_frames):
                    pixels = _pixels(path, held.frame, aspect) if pixels is None else pixels
                    yield number, pixels
                    number += 1
                if shown is not None and shown.start > end:
                    number = max(number, ceil((shown.start - STAMP_TOLERANCE_SECONDS) * FPS))
            held, last = shown, shown or last
        if last is None:
            raise UserError(f"{path}: has no picture that can be decoded; convert it again or remove it")
        claimed_seconds = float((stream.duration or 0) * stream.time_base)
        if last.end < claimed_seconds - TRUNCATION_TOLERANCE_SECONDS:
            raise UserError(
                f"{path}: is truncated, {last.end:.2f} s of picture where {claimed_seconds:.2f} s are claimed"
                "; convert it again or remove it"
            )


def first_frame_seconds(path: Path) -> float:
    """Returns the time stamp of a video's first frame.

    Raises:
        UserError: if it has none, or cannot be read.
    """
    with reading(path), open_track(path, "video") as (container, stream):
        for frame in _decode(container, stream):
            if frame.pts is not None:
                return float(frame.pts * frame.time_base)
    raise UserError(f"{path}: has no picture that can be decoded; convert it again or remove it")


def _decode(container: Any, stream: Any) -> Iterator[Any]:
    stream.thread_type = "AUTO"
    stream.codec_context.thread_count = torch.get_num_threads()  # Ray gives each task its share
    frames: Iterator[Any] = container.decode(stream)
    return frames


def _shown(container: Any, stream: Any) -> Iterator[_Shown]:
    """Decodes a track. Frames before the first time stamp are dropped, and those that come after their time."""
    clock, origin, before = Clock(), None, None
    for frame in _decode(container, stream):
        if frame.pts is not None:
            start = clock(float(frame.pts * frame.time_base))
            origin = start if origin is None else origin
            start -= origin
        elif before is not None:
            start = before.end
        else:
            continue
        if before is not None and start < before.start:
            continue
        if frame.duration:
            duration = float(frame.duration * frame.time_base)
        else:
            duration = min(start - before.start, MAX_JUMP_SECONDS) if before is not None else 1 / FPS
        before = _Shown(frame, start, start + duration)
        yield before


def _sample_aspect(path: Path, stream: Any) -> float:
    """Width of a sample by its height."""
    aspect = float(stream.sample_aspect_ratio or 1)
    if not 1 / MAX_SAMPLE_ASPECT <= aspect <= MAX_SAMPLE_ASPECT:
        raise UserError(
            f"{path}: its sample aspect ratio must be from 1:{MAX_SAMPLE_ASPECT:g} to {MAX_SAMPLE_ASPECT:g}:1, is"
            f" {stream.sample_aspect_ratio}; convert it again or remove it"
        )
    return aspect


def _pixels(path: Path, frame: Any, sample_aspect: float) -> Bytes:
    """Makes a decoded frame uint8 (H, W, 3), RGB, with square pixels, turned as it is to be shown."""
    if frame.color_trc in _HDR:
        raise UserError(
            f"{path}: is HDR ({_HDR[frame.color_trc]}), whose colours would come out wrong; convert it by ffmpeg -i"
            f" {shlex.quote(str(path))} -vf {_HDR_FILTERS} -c:a copy OUT.mp4"
        )
    if sample_aspect == 1:
        pixels = frame.to_ndarray(format="rgb24")
    else:  # never made smaller
        width, height = round(frame.width * max(1, sample_aspect)), round(frame.height / min(1, sample_aspect))
        pixels = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="BICUBIC")
    return np.ascontiguousarray(_oriented(pixels, frame))


def _oriented(pixels: Bytes, frame: Any) -> Bytes:
    """Turns and mirrors pixels by the frame's display matrix, as far as whole quarter turns do.

    The matrix takes a point (p, q) to (a p + c q, b p + d q) (ISO/IEC 14496-12, section 8.3.2).
    """
    side_data = frame.side_data.get(SideDataType.DISPLAYMATRIX)
    if side_data is None:
        return pixels
    a, b, _, c, d, *_ = np.frombuffer(bytes(side_data), np.int32).tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, across, down = pixels.swapaxes(0, 1), c, b
    else:
        across, down = a, d
    return pixels[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]
