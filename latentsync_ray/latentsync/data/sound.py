"""The sound of a video: 16 kHz mono, each sample at the time that its stamp says."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from latentsync_ray.config.errors import UserError
from latentsync_ray.latentsync.data.container import MAX_JUMP_SECONDS, Clock, open_track, reading
from latentsync_ray.latentsync.data.media import SAMPLE_RATE, Floats
from latentsync_ray.latentsync.data.pictures import first_frame_seconds

STAMP_TOLERANCE_SECONDS = 0.01
"""How far a time stamp may be off the end of what came before and yet be joined to it: half of a usual packet."""

MIN_SOURCE_RATE = 4000

SILENCE = 10**-3.5
"""Root mean square below which a wave in [-1, 1] counts as silent: -70 dB."""

_QUIET, _CANCELLED = 0.01, 0.05
"""Sound cancels itself out if mono is below the first, and its share of what both channels have below the second."""


@dataclass(frozen=True, eq=False)
class Stretch:
    """Sound without a jump of its clock.

    Attributes:
        start: number of its first sample, counted from the picture's first frame on at 16 kHz; not negative.
        wave: float32 (N,) in [-1, 1]; gaps of up to a second are silence.
    """

    start: int
    wave: Floats

    @property
    def stop(self) -> int:
        """Number of the sample after its last."""
        return self.start + len(self.wave)


@dataclass(frozen=True, eq=False)
class Sound:
    """The sound of a video.

    Attributes:
        stretches: in order of time, at least one; the clock jumps by more than a second between them.
        cancels: whether the two channels are of opposite phase, so that mono is all but silent.
    """

    stretches: list[Stretch]
    cancels: bool


def read_sound(path: Path) -> Sound:
    """Reads the sound of a video, resampled to 16 kHz mono, from the video's first frame on.

    A .wav of the same stem beside the video, where there is one, gives the sound in place of the video's own, and
    begins with its first frame.

    Raises:
        UserError: if a file cannot be read, or lacks picture or sound; names the one at fault.
    """
    origin: float | None = first_frame_seconds(path)
    wav = path.with_suffix(".wav")
    if wav != path and wav.is_file():
        path, origin = wav, None
    with reading(path):
        stretches = _placed(_runs(path, "mono"), origin)
        if not stretches:
            raise UserError(f"{path}: has no sound that can be decoded; convert it again or remove it")
        mono = _rms([stretch.wave for stretch in stretches])
        channels = _rms([samples for _, samples in _runs(path, "stereo")]) if mono < _QUIET else 0.0
    return Sound(stretches, channels > SILENCE and mono < _CANCELLED * channels)


def _rms(waves: list[Floats]) -> float:
    num_samples = sum(wave.size for wave in waves)
    return float(np.sqrt(sum(float(np.vdot(wave, wave)) for wave in waves) / max(1, num_samples)))


def _placed(runs: Iterator[tuple[float, Floats]], origin: float | None) -> list[Stretch]:
    """Joins runs of mono sound by their times; `origin` is the time of sample 0, by default that of the first run."""
    tolerance, max_jump = (round(seconds * SAMPLE_RATE) for seconds in (STAMP_TOLERANCE_SECONDS, MAX_JUMP_SECONDS))
    starts: list[int] = []
    pieces: list[list[Floats]] = []
    stop = 0  # sound that begins within a second of the picture is preceded by silence
    for seconds, wave in runs:
        origin = seconds if origin is None else origin
        start = round((seconds - origin) * SAMPLE_RATE)
        if not starts or start - stop > max_jump:
            stop = start if start - stop > max_jump else stop
            starts.append(stop)
            pieces.append([])
        gap = start - stop
        if abs(gap) > (tolerance if pieces[-1] else 0):
            wave = np.pad(wave, (gap, 0)) if gap > 0 else wave[-gap:]
        if len(wave):
            pieces[-1].append(wave)
            stop += len(wave)
    return [Stretch(start, np.concatenate(waves)) for start, waves in zip(starts, pieces, strict=True) if waves]


def _runs(path: Path, layout: str) -> Iterator[tuple[float, Floats]]:
    """Decodes the sound of a file in runs that have one format and no gap.

    Yields:
        The time of the first sample in seconds, and float32 (N,) at 16 kHz, of stereo (N, 2) flattened.
    """
    clock, run = Clock(), None
    with open_track(path, "audio") as (container, stream):
        for packet in container.demux(stream):
            for frame in packet.decode():
                # FFmpeg cuts what a container packs together into packets without a position, and guesses their
                # stamps from a sample rate that may have been another's (MPEG-TS).
                is_stamped = frame.pts is not None and (packet.pos is not None or run is None)
                seconds = clock(float(frame.pts * frame.time_base)) if is_stamped else None
                if run is None or not run.goes_on(frame, seconds):
                    if run is not None:
                        yield run.start, run.end()
                    if frame.sample_rate < MIN_SOURCE_RATE:
                        raise UserError(
                            f"{path}: its sound must have {MIN_SOURCE_RATE} Hz or more, has {frame.sample_rate};"
                            " convert it again or remove it"
                        )
                    start = seconds if seconds is not None else run.stop if run is not None else 0.0
                    run = _Run(start, frame, layout)
                run.add(frame)
    if run is not None:
        yield run.start, run.end()


class _Run:
    """Decoded sound of one format without a gap, resampled as it comes."""

    def __init__(self, start: float, frame: Any, layout: str):
        self.start = self.stop = start
        self._format = _format(frame)
        # By itself FFmpeg adds up channels so that loud stereo goes beyond [-1, 1].
        options = {"rematrix_maxval": "1"}
        self._resampler = av.AudioResampler(format="flt", layout=layout, rate=SAMPLE_RATE, options=options)
        self._pieces: list[Floats] = []

    def goes_on(self, frame: Any, seconds: float | None) -> bool:
        """Tells whether a frame, and its time stamp if it has one, continue the run."""
        is_next = seconds is None or abs(seconds - self.stop) <= STAMP_TOLERANCE_SECONDS
        return is_next and _format(frame) == self._format

    def add(self, frame: Any) -> None:
        """Takes a frame."""
        self._pieces += [piece.to_ndarray()[0] for piece in self._resampler.resample(frame)]
        self.stop += frame.samples / frame.sample_rate

    def end(self) -> Floats:
        """Returns all of its samples."""
        self._pieces += [piece.to_ndarray()[0] for piece in self._resampler.resample(None)]
        return np.concatenate(self._pieces) if self._pieces else np.zeros(0, np.float32)


def _format(frame: Any) -> tuple[int, str, str]:
    return frame.sample_rate, frame.layout.name, frame.format.name
