"""Files to encoded clips on a Ray cluster: tasks read and align, actors that hold the networks encode."""

import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import ray
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy
from torch import Tensor

from latentsync_ray.config.errors import UserError
from latentsync_ray.core.atomic import new_file
from latentsync_ray.core.hashing import digest
from latentsync_ray.latentsync.data.aligned import read_clip
from latentsync_ray.latentsync.data.clips import ClipRecord
from latentsync_ray.latentsync.data.container import printable
from latentsync_ray.latentsync.data.footage import read_footage
from latentsync_ray.latentsync.data.media import Clip, face_mask, read_mask
from latentsync_ray.latentsync.preparation.encode import ClipEncoder

MAX_ATTEMPTS = 3
"""How often a file is begun whose reading or encoding ends its process; Ray by itself would never stop."""


@dataclass(frozen=True)
class Source:
    """A file to prepare: what clips of it are to be called, where it is, and a key that names its contents.

    The path may hold bytes that are not UTF-8, as `os.fsdecode` gives them; the name may not.
    """

    name: str
    path: str
    key: str


@dataclass(frozen=True)
class Settings:
    """How files are prepared; paths are absolute and hold on every node."""

    vae: str
    audio_encoder: str
    resolution: int
    mask: Path | None
    raw: bool
    face_models: Path | None

    def drawn_mask(self) -> Tensor:
        """Returns the mask, (resolution, resolution) of 1 = kept and 0 = to be generated.

        Raises:
            UserError: if its file is no mask.
        """
        return face_mask(self.resolution) if self.mask is None else read_mask(self.mask, self.resolution)


@dataclass(frozen=True)
class Outcome:
    """What became of one of the `num_clips` clips of a source: a record and warnings, or why it is left out."""

    source: str
    num_clips: int
    clip: ClipRecord | None
    reason: str
    warnings: list[str]


def encode_files(
    sources: Sequence[Source], settings: Settings, folder: Path, records: Path, attempts: Path
) -> Iterator[Outcome]:
    """Reads and encodes files on the cluster that is joined, each clip as soon as there is room for it.

    A process that dies is replaced and its work repeated, up to `MAX_ATTEMPTS` times for one file.

    Args:
        sources: the files.
        settings: how.
        folder: the set's, where clips are written; every node must see it, as the next two.
        records: a folder for the records of clips; those that earlier runs have left there are not encoded again.
        attempts: an empty folder, to count attempts in.

    Yields:
        What became of each clip, in no order. Of a source whose processes died too often some may be missing.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.target_max_block_size = 1  # a clip each, so that clips of one file are encoded side by side
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    have = ray.cluster_resources()
    num_cpus, num_gpus = max(1, int(have.get("CPU", 1))), int(have.get("GPU", 0))

    rows = [SourceRow(name=source.name, path=os.fsencode(source.path), key=source.key) for source in sources]
    # A block for each file, so that what dies over one takes no other with it.
    clips = ray.data.from_items(rows, override_num_blocks=len(rows)).flat_map(
        read_source,
        fn_kwargs={"settings": settings, "attempts": attempts},
        # Encoding on CPUs takes ten times as long as all before it: readers then are no reason for fewer encoders.
        num_cpus=1 if num_gpus else 0,
        compute=TaskPoolStrategy(size=min(num_cpus, len(rows))),
    )
    outcomes = clips.map(
        EncodeClip,
        fn_constructor_kwargs={
            "settings": settings,
            "folder": folder,
            "records": records,
            "attempts": attempts,
        },
        num_cpus=0 if num_gpus else 1,
        num_gpus=1 if num_gpus else 0,
        compute=ActorPoolStrategy(min_size=1, max_size=num_gpus or num_cpus),
    )
    for row in outcomes.iter_rows():
        record = ClipRecord(**json.loads(row["clip"])) if row["clip"] else None
        yield Outcome(row["source"], row["num_clips"], record, row["reason"], json.loads(row["warnings"]))


class SourceRow(TypedDict):
    """A `Source` as a row of Ray Data; Arrow's text is UTF-8, and paths may be anything."""

    name: str
    path: bytes
    key: str


class OutcomeRow(TypedDict):
    """An `Outcome` as a row; its clip and its warnings are JSON, the clip empty if it is left out."""

    source: str
    num_clips: int
    reason: str
    warnings: str
    clip: str


class ClipRow(TypedDict):
    """A clip that was read, as a row; where there is a reason it holds nothing."""

    source: str
    num_clips: int
    reason: str
    warnings: str
    name: str
    frames: bytes
    wave: bytes


def read_source(source: SourceRow, *, settings: Settings, attempts: Path) -> Iterator[ClipRow]:
    """Reads the clips of a source, one at a time."""
    path, num_read = Path(os.fsdecode(source["path"])), 0
    try:
        _begin(attempts / source["key"], path)
        if settings.raw:
            generated = settings.drawn_mask().numpy() == 0
            num_clips, clips = read_footage(path, settings.resolution, generated, settings.face_models)
        else:
            num_clips, clips = 1, iter([read_clip(path, settings.resolution)])
        for clip in clips:
            name = f"{source['name']}/{clip.name}" if settings.raw else source["name"]
            yield _row(source["key"], num_clips, "", name, clip)
            num_read += 1
    except UserError as error:
        yield _row(source["key"], num_read + 1, printable(str(error)), "", None)


def _row(source: str, num_clips: int, reason: str, name: str, clip: Clip | None) -> ClipRow:
    return {
        "source": source,
        "num_clips": num_clips,
        "reason": reason,
        "warnings": json.dumps(clip.warnings if clip else ()),
        "name": name,
        "frames": clip.frames.tobytes() if clip else b"",
        "wave": clip.wave.tobytes() if clip else b"",
    }


class EncodeClip:
    """An actor's work: holds the networks, and writes what they make of each clip."""

    def __init__(self, settings: Settings, folder: Path, records: Path, attempts: Path):
        self._encoder = ClipEncoder(settings.vae, settings.audio_encoder, settings.resolution, settings.mask)
        self._resolution, self._folder, self._records, self._attempts = settings.resolution, folder, records, attempts

    def __call__(self, row: ClipRow) -> OutcomeRow:
        """Encodes a row of `read_source`; gives an `Outcome` with its clip's record as JSON, empty if left out."""
        outcome = OutcomeRow(
            source=row["source"],
            num_clips=row["num_clips"],
            reason=row["reason"],
            warnings=row["warnings"],
            clip="",
        )
        if row["reason"]:
            return outcome
        key = digest([row["source"], row["name"]])
        record = read_record(self._records / key, self._folder)
        if record is None:
            frames = np.frombuffer(row["frames"], np.uint8).reshape(-1, self._resolution, self._resolution, 3)
            clip = Clip(row["name"], frames, np.frombuffer(row["wave"], np.float32))
            try:
                _begin(self._attempts / key, row["name"])
                record = self._encoder.encode(clip, self._folder)
            except UserError as error:
                return {**outcome, "reason": str(error)}
            write_json(self._records / key, dataclasses.asdict(record))
        return {**outcome, "clip": json.dumps(dataclasses.asdict(record))}


def read_record(path: Path, folder: Path) -> ClipRecord | None:
    """Reads the record of a clip of an earlier run; None if there is none, or its file is not in the set's folder."""
    try:
        record = ClipRecord(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return record if (folder / record.file).is_file() else None


def write_json(path: Path, values: object) -> None:
    """Writes a small file at once."""
    with new_file(path) as made:
        made.write_text(json.dumps(values, indent=1))


def _begin(count: Path, what: Path | str) -> None:
    """Counts an attempt, a byte each.

    Raises:
        UserError: if there were enough.
    """
    count.parent.mkdir(
        parents=True, exist_ok=True
    )  # missing if nodes share no filesystem, which the driver finds out
    with count.open("ab") as file:
        file.write(b".")
        if file.tell() > MAX_ATTEMPTS:
            raise UserError(
                f"{what}: ended {MAX_ATTEMPTS} processes that worked on it (too little memory, or a fault of a"
                " decoder); convert it again or remove it"
            )
