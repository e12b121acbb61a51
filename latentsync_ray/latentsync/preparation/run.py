"""A folder of videos, prepared on the cluster: what is done, what is missing, and the set when all is there."""

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from latentsync_ray.cluster.connection import cluster
from latentsync_ray.config.errors import UserError
from latentsync_ray.core.hashing import digest
from latentsync_ray.latentsync.data.clips import ClipRecord, PreparedClips
from latentsync_ray.latentsync.data.container import VIDEO_SUFFIXES, printable
from latentsync_ray.latentsync.preparation.encode import ClipEncoder
from latentsync_ray.latentsync.preparation.pipeline import Outcome, Settings, Source, encode_files, write_json
from latentsync_ray.latentsync.preparation.prepare import held_out, is_prepared, publish, stderr_console

PROGRESS_SECONDS = 15.0
"""How often progress is told where the output is no terminal."""


def find_sources(folder: Path) -> tuple[list[Source], list[str]]:
    """Finds the videos in a folder and below, each named by its relative path without the suffix.

    What is hidden is skipped, and so is another link to a video that is there already, which might else be both
    trained and validated on.

    Keys are made of names, sizes and times of change, as make and rsync tell files apart: reading terabytes before
    a run can go on would take hours.

    Returns:
        The sources, and a line about each link that is skipped.

    Raises:
        UserError: if it is no folder, or holds none.
    """
    kinds = " ".join(VIDEO_SUFFIXES)
    if not folder.is_dir():
        raise UserError(f"{folder}: must be a folder of {kinds} files, is none; give another")
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()]
    paths = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not paths:
        raise UserError(f"{folder}: no {kinds} in it or below; give the folder that holds the videos")
    sources: list[Source] = []
    notices: list[str] = []
    seen: dict[tuple[int, int], Path] = {}
    for path in sorted(paths, key=lambda path: (path.is_symlink(), path)):
        stats = [file.stat() for file in (path, path.with_suffix(".wav")) if file.is_file()]
        first = seen.setdefault((stats[0].st_dev, stats[0].st_ino), path)
        if first != path:
            notices.append(f"skipped {printable(path)}: is the same file as {printable(first)}")
            continue
        place = path.relative_to(folder)
        key = digest([printable(place), *([stat.st_size, stat.st_mtime_ns] for stat in stats)])
        sources.append(Source(printable(place.with_suffix("")), str(path.absolute()), key))
    return sorted(sources, key=lambda source: source.path), notices


@dataclass
class Progressed:
    """What has become of one source so far."""

    num_clips: int
    clips: list[ClipRecord] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, outcome: Outcome) -> list[str]:
        """Takes note of one of its clips. Returns what is to be said of it."""
        self.num_clips = min(self.num_clips, outcome.num_clips)  # fewer, where reading has failed on the way
        if outcome.clip is None:
            self.left_out.append(outcome.reason)
            return [f"left out {outcome.reason}"]
        self.clips.append(outcome.clip)
        self.warnings += [f"{outcome.clip.name}: {warning}" for warning in outcome.warnings]
        return [f"warning: {outcome.clip.name}: {warning}" for warning in outcome.warnings]

    def said(self) -> list[str]:
        """What there is to be said of it, a line each."""
        return [f"left out {reason}" for reason in self.left_out] + [f"warning: {text}" for text in self.warnings]

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
            done = Progressed(values["num_clips"], clips, values["left_out"], values["warnings"])
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
    for line in (line for progressed in done.values() for line in progressed.said()):
        console.print(line)
    missing = [source for source in sources if source.key not in done]
    if missing:
        with _quiet_cluster():
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
def _quiet_cluster() -> Iterator[None]:
    """Starts or joins Ray without what its backend says on standard error.

    It would warn of every actor that Ray Data is ready to start again. A variable turns this off, which Ray announces
    in a line of its own as it starts. That line is dropped, whatever else is said meanwhile is passed on.
    """
    set_before = "RAY_BACKEND_LOG_LEVEL" in os.environ
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    with contextlib.ExitStack() as stack:
        try:
            with _stderr_without(b"Set ray log level from environment variable"):
                stack.enter_context(cluster())
            yield
        finally:
            if not set_before:
                del os.environ["RAY_BACKEND_LOG_LEVEL"]


@contextlib.contextmanager
def _stderr_without(text: bytes) -> Iterator[None]:
    """Keeps back the lines of standard error, of libraries in C++ too, that contain a text."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            said.seek(0)
            os.write(2, b"".join(line for line in said if text not in line))


@contextlib.contextmanager
def every(seconds: float, act: Callable[[], None]) -> Iterator[None]:
    """Calls a function again and again, from a thread, until the block ends."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(seconds):
            act()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _encode(
    sources: Sequence[Source], settings: Settings, work: WorkFolder, console: Console
) -> dict[str, Progressed]:
    """Prepares sources on the cluster, keeping each that is complete. Returns what became of them, by key."""
    progressed: dict[str, Progressed] = {}
    num_files = num_clips = 0

    def state() -> str:
        return f"preparing: {num_files} of {len(sources)} files, {num_clips} clips"

    with contextlib.ExitStack() as stack:
        bar: Progress | None = None
        if console.is_terminal:
            bar = stack.enter_context(Progress(console=console, transient=True))
            task = bar.add_task(state(), total=len(sources))
        else:
            stack.enter_context(every(PROGRESS_SECONDS, lambda: console.print(state())))
        for outcome in encode_files(sources, settings, work.set, work.records, work.attempts):
            one = progressed.setdefault(outcome.source, Progressed(outcome.num_clips))
            for line in one.add(outcome):
                console.print(line)
            if one.is_complete:
                work.write(outcome.source, one)
            num_files, num_clips = num_files + one.is_complete, num_clips + 1
            if bar is not None:
                bar.update(task, completed=num_files, description=state())
    for source in sources:
        one = progressed.setdefault(source.key, Progressed(0))
        if not one.num_clips or not one.is_complete:
            one.left_out.append(f"{source.path}: what it gave was lost with the processes that worked on it")
            console.print(f"left out {one.left_out[-1]}; run the command again")
    return progressed
