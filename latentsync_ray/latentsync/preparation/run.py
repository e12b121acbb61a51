"""A folder of videos, prepared on the cluster: what is done, what is missing, and the set when all is there."""

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from latentsync_ray.cluster.connection import cluster
from latentsync_ray.config.recipe import UserError
from latentsync_ray.core.segment import digest
from latentsync_ray.latentsync.data.clips import ClipRecord, PreparedClips
from latentsync_ray.latentsync.preparation.encode import ClipEncoder
from latentsync_ray.latentsync.preparation.pipeline import Outcome, Settings, Source, encode_files, write_json
from latentsync_ray.latentsync.preparation.prepare import held_out, is_prepared, publish, stderr_console


def find_sources(folder: Path) -> list[Source]:
    """Finds the .mp4 files in a folder and below, each named by its relative path without the suffix.

    Their keys are made of names, sizes and times of change, as make and rsync tell files apart: reading terabytes
    before a run can go on would take hours.

    Raises:
        UserError: if it is no folder, or holds none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: must be a folder of .mp4 files, is none; give another")
    paths = [path for path in folder.rglob("*") if path.suffix.lower() == ".mp4" and path.is_file()]
    if not paths:
        raise UserError(f"{folder}: no .mp4 in it or below; give the folder that holds the videos")
    sources = []
    for path in sorted(paths):
        name = path.relative_to(folder).with_suffix("").as_posix()
        stats = [file.stat() for file in (path, path.with_suffix(".wav")) if file.is_file()]
        key = digest([path.relative_to(folder).as_posix(), *([stat.st_size, stat.st_mtime_ns] for stat in stats)])
        sources.append(Source(name, str(path.absolute()), key))
    return sources


@dataclass
class Progressed:
    """What has become of one source so far."""

    num_clips: int
    clips: list[ClipRecord] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Takes note of one of its clips."""
        if outcome.clip is None:
            self.left_out.append(outcome.reason)
        else:
            self.clips.append(outcome.clip)

    @property
    def is_complete(self) -> bool:
        """Whether all of its clips are accounted for."""
        return len(self.clips) + len(self.left_out) == self.num_clips


class WorkFolder:
    """What runs with the same settings have done so far, beside the place where the set will be.

    set/: the set as far as it goes; records/: a record for each clip in it; sources/: what became of each source,
    written when all of its clips are there; attempts/: of this run alone.
    """

    def __init__(self, out: Path, settings: str):
        self._out, self._parent = out, out.parent / f".{out.name}.partial"
        folder = self._parent / settings[:16]
        self.set, self.records, self.attempts = folder / "set", folder / "records", folder / "attempts"
        self._sources = folder / "sources"

    def begin(self) -> None:
        """Makes what is missing of it, and forgets the attempts of other runs.

        Raises:
            UserError: if another run is at it.
        """
        self._parent.mkdir(parents=True, exist_ok=True)
        self._lock = (self._parent / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held until the process ends
        except BlockingIOError:
            raise UserError(f"{self._out}: another process is preparing it; wait until it has ended") from None
        shutil.rmtree(self.attempts, ignore_errors=True)
        for folder in (self.set, self.records, self.attempts, self._sources):
            folder.mkdir(parents=True, exist_ok=True)

    def read(self, source: Source) -> Progressed | None:
        """What became of a source; None if it is to be prepared (again)."""
        try:
            values = json.loads((self._sources / f"{source.key}.json").read_text())
            clips = [ClipRecord(**clip) for clip in values["clips"]]
            done = Progressed(values["num_clips"], clips, values["left_out"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return done if all((self.set / clip.file).is_file() for clip in clips) else None

    def write(self, source: str, done: Progressed) -> None:
        """Keeps what became of a source.

        Raises:
            UserError: if this machine does not see what another has written.
        """
        for clip in done.clips:
            if not (self.set / clip.file).is_file():
                raise UserError(
                    f"{self.set / clip.file}: was written on another node and is not here; give an OUT on a"
                    " filesystem that all nodes share"
                )
        write_json(self._sources / f"{source}.json", dataclasses.asdict(done))

    def remove(self) -> None:
        """Removes it, with what other settings have left for the same place."""
        shutil.rmtree(self._parent, ignore_errors=True)


def prepare_files(
    sources: Sequence[Source], out: Path, settings: Settings, validation: Sequence[str]
) -> PreparedClips:
    """Prepares files on the cluster, says on standard error what became of them, and opens the result.

    A file, or a clip of it, that cannot be used is named with the reason and left out. What an interrupted run with
    the same settings has done is not done again. If `out` was made from the same files already, nothing is done;
    otherwise it appears at once when all is prepared.

    Args:
        sources: the files; names must differ.
        out: folder to make; every node of the cluster must see it.
        settings: how to prepare them.
        validation: patterns of the clips' names to hold out, as `held_out` takes them.

    Raises:
        UserError: if an argument does not fit, `out` holds something else, or no clip can be used.
    """
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"clips: names must differ, two are called {twice}; rename one")
    if not settings.raw:
        held_out(names, validation)  # patterns that match nothing are better found now than in the end

    encoder = ClipEncoder(settings.vae, settings.audio_encoder, settings.resolution, settings.mask)
    index, mask_file = encoder.index, encoder.mask_file
    del encoder  # the actors have their own
    made_with = [index.as_json(), settings.raw]
    made_with += [str(settings.face_models)] if settings.face_models else []
    index = replace(index, source=digest([*made_with, list(validation), sorted(source.key for source in sources)]))
    console, work = stderr_console(), WorkFolder(out, digest(made_with))
    if is_prepared(out, index.source):
        work.remove()
        console.print(f"{out} was prepared from these files with these settings already: nothing to do")
        return PreparedClips.open(out)

    work.begin()
    done = {source.key: progressed for source in sources if (progressed := work.read(source)) is not None}
    if done:
        console.print(f"{len(done)} of {len(sources)} files were done before")
    for reason in (reason for progressed in done.values() for reason in progressed.left_out):
        console.print(f"left out {reason}")
    missing = [source for source in sources if source.key not in done]
    if missing:
        with _no_warnings_of_restarts(), cluster():
            done |= _encode(missing, settings, work, console)

    records = [clip for progressed in done.values() for clip in progressed.clips]
    num_left_out = sum(len(progressed.left_out) for progressed in done.values())
    if not records:
        work.remove()
    publish(work.set, out, index, records, validation, mask_file)
    work.remove()
    console.print(f"prepared {len(records)} clips, left out {num_left_out}: {out}")
    return PreparedClips.open(out)


@contextlib.contextmanager
def _no_warnings_of_restarts() -> Iterator[None]:
    """Ray would warn of every actor that Ray Data is ready to start again; it reads the level when it is started."""
    set_before = "RAY_BACKEND_LOG_LEVEL" in os.environ
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        yield
    finally:
        if not set_before:
            del os.environ["RAY_BACKEND_LOG_LEVEL"]


def _encode(
    sources: Sequence[Source], settings: Settings, work: WorkFolder, console: Console
) -> dict[str, Progressed]:
    """Prepares sources on the cluster, keeping each that is complete. Returns what became of them, by key."""
    progressed: dict[str, Progressed] = {}
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("preparing", total=len(sources))
        for number, outcome in enumerate(encode_files(sources, settings, work.set, work.records, work.attempts), 1):
            one = progressed.setdefault(outcome.source, Progressed(outcome.num_clips))
            one.add(outcome)
            if outcome.reason:
                console.print(f"left out {outcome.reason}")
            if one.is_complete:
                work.write(outcome.source, one)
                progress.advance(task)
            progress.update(task, description=f"preparing: {number} clips")
    for source in sources:
        one = progressed.setdefault(source.key, Progressed(0))
        if not one.num_clips or not one.is_complete:
            one.left_out.append(f"{source.path}: what it gave was lost with the processes that worked on it")
            console.print(f"left out {one.left_out[-1]}; run the command again")
    return progressed
