"""A prepared set from encoded clips: which of them are held out, and how the set appears in its place at once."""

import hashlib
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from latentsync_ray.config.errors import UserError
from latentsync_ray.core.hashing import digest
from latentsync_ray.latentsync.data.clips import ClipRecord, Index, PreparedClips
from latentsync_ray.latentsync.data.media import Clip
from latentsync_ray.latentsync.preparation.encode import ClipEncoder

VALIDATION_SHARE = 0.2


def stderr_console() -> Console:
    """A console for what is said beside a command's output, which takes no text for markup."""
    return Console(stderr=True, markup=False, highlight=False, soft_wrap=True)


def prepare(
    clips: Iterable[Clip],
    out: Path | str,
    *,
    vae: Path | str,
    audio_encoder: Path | str,
    resolution: int,
    validation: Sequence[str] = (),
    mask: Path | None = None,
) -> PreparedClips:
    """Prepares clips in this process, says on standard error what became of them, and opens the result.

    A clip that cannot be used is named with the reason and left out. If `out` was made from the same clips,
    networks and settings already, nothing is done; otherwise it appears at once when all is prepared.

    Args:
        clips: their names must differ.
        out: folder to make.
        vae: folder or hub id of the autoencoder.
        audio_encoder: folder or hub id of a Whisper model.
        resolution: height and width in pixels to which frames are resized.
        validation: patterns (as of file names, `*` also matching `/`) of the names held out; without any, about
            every fifth clip, chosen by the hash of its name.
        mask: picture of the part to generate (black); None draws our own.

    Raises:
        UserError: if an argument does not fit, `out` holds something else, or no clip can be used.
    """
    out, clips = Path(out), sorted(clips, key=lambda clip: clip.name)
    names = [clip.name for clip in clips]
    if len(set(names)) < len(names):
        twice = next(a for a, b in pairwise(names) if a == b)
        raise UserError(f"clips: names must differ, two are called {twice}; rename one")
    held_out(names, validation)  # patterns that match nothing are better found now than in the end

    encoder = ClipEncoder(vae, audio_encoder, resolution, mask)
    contents = [[clip.name, _content_sha256(clip)] for clip in clips]
    index = replace(encoder.index, source=digest([encoder.index.as_json(), list(validation), contents]))
    console = stderr_console()
    if is_prepared(out, index.source):
        console.print(f"{out} was prepared from these clips with these settings already: nothing to do")
        return PreparedClips.open(out)

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        folder = Path(temporary) / "prepared"
        folder.mkdir()
        records = []
        with Progress(console=console, transient=True) as progress:
            for clip in progress.track(clips, description="preparing clips"):
                try:
                    records.append(encoder.encode(clip, folder))
                except UserError as error:
                    console.print(f"left out {error}")
        publish(folder, out, index, records, validation, encoder.mask_file)
    console.print(f"prepared {len(records)} clips, left out {len(clips) - len(records)}: {out}")
    return PreparedClips.open(out)


def publish(
    folder: Path, out: Path, index: Index, records: Sequence[ClipRecord], validation: Sequence[str], mask_file: bytes
) -> None:
    """Makes a set of a folder that holds its clips' files, and puts it in its place.

    Args:
        folder: becomes `out`; on the same filesystem.
        out: where the set is to be.
        index: what it says, but for the clips.
        records: those of the clips.
        validation: patterns of the names to hold out, as `held_out` takes them.
        mask_file: the bytes of mask.safetensors.

    Raises:
        UserError: if the clips cannot be split, or something else has come to be at `out`.
    """
    chosen = held_out([record.name for record in records], validation)
    split = [replace(record, split="validation" if record.name in chosen else "train") for record in records]
    (folder / "mask.safetensors").write_bytes(mask_file)
    replace(index, clips=sorted(split, key=lambda record: record.name)).write(folder)
    try:
        folder.rename(out)
    except OSError:  # another process was faster
        if not is_prepared(out, index.source):
            raise


def held_out(names: Sequence[str], patterns: Sequence[str]) -> set[str]:
    """Chooses the names of the clips to validate on.

    Args:
        names: all of them.
        patterns: what to hold out, as of file names; without any, about every fifth by the hash of its name.

    Raises:
        UserError: if nothing is left to train on or to validate on.
    """
    if len(names) < 2:
        raise UserError(
            f"clips: one to train on and one to validate on are needed, {len(names)} can be used; add clips"
        )
    if not patterns:
        ranked = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
        return set(ranked[: max(1, round(len(names) * VALIDATION_SHARE))])
    chosen = {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}
    if not 0 < len(chosen) < len(names):
        raise UserError(
            f"validation: {' '.join(patterns)} must match some of the {len(names)} clips and not all, matches"
            f" {len(chosen)}; names look like {names[0]}"
        )
    return chosen


def is_prepared(out: Path, source: str) -> bool:
    """Tells whether `out` was made from `source`.

    Raises:
        UserError: if it holds something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / "index.json").is_file() or Index.read(out).source != source:
        raise UserError(
            f"{out}: holds something else than these clips prepared with these settings; choose another folder or"
            " remove it"
        )
    return True


def _content_sha256(clip: Clip) -> str:
    return hashlib.sha256(repr(clip.frames.shape).encode() + clip.frames.tobytes() + clip.wave.tobytes()).hexdigest()
