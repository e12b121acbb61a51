"""What a power cut leaves of a store of which all syncs were recorded (syncs/sitecustomize.py)."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sync:
    """One `fsync` of a file or folder of the store."""

    pid: int
    name: str
    """From the store's root; of a file as it was called then."""
    inode: int
    tree: dict[str, int]
    """Inodes by name of all files that the processes saw in the store then."""
    names: dict[str, int] | None = None
    """Of a folder: inodes by name of what is in it; folders' names end with a slash."""
    content: str | None = None
    """Of a file: where in the log its content is."""

    @property
    def key(self) -> str | None:
        """The segment that it belongs to."""
        folder, _, rest = self.name.partition("/")
        return rest.partition("/")[0] if folder == "segments" and rest else None


class Disk:
    """The disk below a store, at any moment of what was recorded.

    Args:
        folder: With `store` and `log`.
    """

    def __init__(self, folder: Path):
        self._log, self._root = folder / "log", (folder / "store").stat().st_ino
        self.syncs = [Sync(**json.loads(line)) for line in (self._log / "events").read_text().splitlines()]

    def restore(self, moment: int, names_arrived: bool, target: Path) -> None:
        """Makes the store as it is after a power cut.

        Args:
            moment: So many syncs were done, and the next one had begun.
            names_arrived: Whether all names are on the disk, as a filesystem may write them of itself before it is
                asked to and before the files' contents; otherwise none but those that were synced.
            target: A new folder.
        """
        done = self.syncs[:moment]
        contents = {sync.inode: sync.content for sync in done if sync.content is not None}
        folders = {sync.inode: sync.names for sync in done if sync.names is not None}
        target.mkdir(parents=True)
        if names_arrived:
            for name, inode in self.syncs[moment].tree.items():  # just before the next sync
                self._write(target / name, contents.get(inode))
            return

        def write(folder: Path, inode: int) -> None:
            folder.mkdir(exist_ok=True)
            for name, below in folders.get(inode, {}).items():
                if name.endswith("/"):
                    write(folder / name, below)
                else:
                    self._write(folder / name, contents.get(below))

        write(target, self._root)

    def published(self, moment: int) -> set[str]:
        """Keys of segments that a worker had stored for good, as it believed: it was at its next one."""
        found, newest = set(), {}
        for sync in self.syncs[:moment]:
            if sync.key is None:
                continue
            before = newest.get(sync.pid)
            if before is not None and before.key != sync.key:
                found.add(before.key)
            newest[sync.pid] = sync
        return found

    def _write(self, file: Path, content: str | None) -> None:
        """A file whose content was never synced is there, and empty."""
        file.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            file.touch()
        else:
            shutil.copyfile(self._log / content, file)
