"""Settings of the clips that LatentSync trains on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from latentsync_ray.config.errors import Complaint, seed_complaints


@dataclass(frozen=True)
class SyntheticConfig:
    """Talking faces that the repository draws itself, for a recipe that needs no data from outside."""

    num_speakers: int = 6
    """Speakers in all, numbered from 0."""
    num_validation_speakers: int = 1
    """How many of them, the last ones, are held out for validation."""
    clips_per_speaker: int = 4
    """Clips of each speaker."""
    num_frames: int = 100
    """Frames of each clip, at 25 a second."""
    resolution: int = 64
    """Height and width in pixels."""
    seed: int = 0
    """What is drawn is a pure function of these settings."""

    def complaints(self) -> Iterator[Complaint]:
        """The rules that these values break."""
        for name in ("num_speakers", "clips_per_speaker", "num_frames", "resolution"):
            if getattr(self, name) < 1:
                yield name, "must be at least 1", "raise it"
        if not 1 <= self.num_validation_speakers < self.num_speakers:
            yield "num_validation_speakers", "must be at least 1 and below num_speakers", "change either"
        yield from seed_complaints(self.seed)


@dataclass(frozen=True)
class DataConfig:
    """Where the prepared clips are."""

    folder: str
    """A folder that `latentsync-ray preprocess` wrote; relative to the file that names it."""
    num_frames: int = 16
    """Frames of one sample."""
    synthetic: SyntheticConfig | None = None
    """Draw and prepare these clips if the folder does not exist."""

    def complaints(self) -> Iterator[Complaint]:
        """The rules that these values break."""
        if self.num_frames < 1:
            yield "num_frames", "must be at least 1", "raise it"
        if self.synthetic is not None and self.num_frames > self.synthetic.num_frames:
            rule = f"must not be above synthetic.num_frames ({self.synthetic.num_frames})"
            yield "num_frames", rule, "lower it or draw longer clips"
