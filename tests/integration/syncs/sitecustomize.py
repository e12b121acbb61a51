"""Records what a process syncs to the disk; Python imports this at the start of every process that finds it first.

`RECORD_SYNCS` names a folder with a store and what is recorded of it, `store` and `log`. A line of `log/events` says
what one `fsync` has put on the disk: the content of a file, or the names in a folder. Files and folders are told
apart by their inodes, as on a disk; a link to each synced file keeps its inode from being given to another one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import stat
from pathlib import Path

_fsync = os.fsync


def _names(folder: Path) -> dict[str, int]:
    """Inodes by name of what is in a folder; folders' names end with a slash."""
    found = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            found[entry.name + ("/" if entry.is_dir() else "")] = entry.inode()
    return found


def _tree(folder: Path) -> dict[str, int]:
    """Inodes of all files below a folder, by their names from there."""
    found = {}
    for name, inode in _names(folder).items():
        if not name.endswith("/"):
            found[name] = inode
            continue
        with contextlib.suppress(FileNotFoundError):
            found |= {name + below: below_inode for below, below_inode in _tree(folder / name).items()}
    return found


def _recorded(descriptor: int) -> None:
    """Syncs as `os.fsync`, and notes what was synced."""
    store, log = (Path(os.environ["RECORD_SYNCS"]) / part for part in ("store", "log"))
    path = Path(f"/proc/self/fd/{descriptor}").readlink()
    if path != store and store not in path.parents:
        _fsync(descriptor)
        return
    with (log / "events").open("a") as events:
        fcntl.flock(events, fcntl.LOCK_EX)  # syncs have an order
        _fsync(descriptor)
        status = os.fstat(descriptor)
        event = {"pid": os.getpid(), "name": str(path.relative_to(store)), "inode": status.st_ino}
        if stat.S_ISDIR(status.st_mode):
            event["names"] = _names(path)
        else:
            number = len(list(log.iterdir()))
            shutil.copyfile(f"/proc/self/fd/{descriptor}", log / f"{number}")
            os.link(path, log / f"{number}.link")
            event["content"] = f"{number}"
        event["tree"] = _tree(store)
        events.write(json.dumps(event) + "\n")


if "RECORD_SYNCS" in os.environ:
    os.fsync = _recorded
