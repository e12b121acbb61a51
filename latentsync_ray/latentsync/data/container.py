"""Files that FFmpeg reads: which of their tracks are taken, what their clock says, whose fault an error is."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import av

from latentsync_ray.config.errors import UserError

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi")

MAX_JUMP_SECONDS = 1.0
"""How far apart two time stamps of a track may lie before its clock counts as having jumped."""

_RESTART_SECONDS = 1e6
"""What the stamps are raised by where a clock has jumped back: longer than any recording."""

_WORDS = {"video": "video", "audio": "sound"}


def printable(path: Path | str) -> str:
    r"""Returns a file's name as text; bytes that are not UTF-8 are written as \xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns any exception while a file is read into a `UserError` that names the file and gives the reason."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"{path}: cannot be read as video with sound ({reason}); convert it again or remove it"
        ) from error


@contextmanager
def open_track(path: Path, kind: Literal["video", "audio"]) -> Iterator[tuple[Any, Any]]:
    """Opens a file and chooses a track of it: the one marked as default, else the first. Cover pictures do not count.

    Args:
        path: a file that FFmpeg can read.
        kind: of the track.

    Yields:
        PyAV's container and stream.

    Raises:
        UserError: if there is no such track, or no decoder for it.
    """
    marks = av.stream.Disposition
    # Titles and comments may be in any encoding, and are not needed.
    with av.open(str(path), metadata_errors="ignore") as container:
        streams = getattr(container.streams, kind)
        tracks = [stream for stream in streams if not stream.disposition & marks.attached_pic]
        if not tracks:
            remedy = "remove it" if kind == "video" else "add it, or lay a .wav of the same stem beside it"
            raise UserError(f"{path}: has no {_WORDS[kind]}; {remedy}")
        track = next((stream for stream in tracks if stream.disposition & marks.default), tracks[0])
        if track.codec_context is None:
            raise UserError(f"{path}: there is no decoder for its {_WORDS[kind]}; convert it to H.264 with AAC")
        yield container, track


class Clock:
    """Makes the time stamps of a track, in seconds, grow throughout the file.

    A clock that jumps back, as where recordings were joined, is put forward by far more than a recording lasts. That
    keeps what comes before and after apart, and picture and sound together where both of their clocks jump back.
    """

    def __init__(self) -> None:
        self._offset, self._last = 0.0, -float("inf")

    def __call__(self, seconds: float) -> float:
        """Gives the time that a stamp stands for."""
        if seconds < self._last - MAX_JUMP_SECONDS:
            self._offset += _RESTART_SECONDS
        self._last = seconds
        return seconds + self._offset


def jumped(path: Path, kind: Literal["video", "audio"], seconds: float) -> UserError:
    """The reason for leaving out a clip in which a clock jumps, `seconds` after the first frame."""
    return UserError(
        f"{path}: the clock of its {_WORDS[kind]} jumps by more than {MAX_JUMP_SECONDS:g} s, {seconds:.2f} s after"
        " its first frame; cut it there or convert it again"
    )
