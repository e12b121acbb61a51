"""Files and folders that appear at once, with all that is in them."""

import errno
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from latentsync_ray.config.errors import UserError

TEMPORARY = ".tmp"
"""How the names of files end that are being written; what is left of them was left by a writer that was killed."""


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Gives a name beside `path`, and renames that file to `path` when the block ends without an exception.

    The file and its name are on the disk then: a power cut leaves the whole file or the one before. Its mode is the
    umask's, whatever the library that writes it has chosen.

    Args:
        path: Where the file will be; one that is there is replaced. Its folder is made.

    Raises:
        OSError: It cannot be written.
    """
    made = _made(path.parent) / f"{path.name}.{uuid.uuid4().hex}{TEMPORARY}"
    try:
        made.touch(exist_ok=False)
        mode = made.stat().st_mode
        yield made
        made.chmod(mode)
        _sync(made)
        made.replace(path)
        _sync(path.parent)
    finally:
        made.unlink(missing_ok=True)


def create_file(path: Path, content: bytes) -> bool:
    """Writes a file unless it is there; of several processes one does. It appears with its content, on the disk.

    On a filesystem without hard links, such as FAT, others may see it before its content.

    Returns:
        Whether it was not there.

    Raises:
        OSError: It cannot be written.
    """
    made = _made(path.parent) / f"{path.name}.{uuid.uuid4().hex}{TEMPORARY}"
    try:
        made.write_bytes(content)
        _sync(made)
        try:
            path.hardlink_to(made)
        except FileExistsError:
            return made.samefile(path)  # a server that was asked twice, since its first answer was lost
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOSYS, errno.ENOTSUP):
                raise
            return _create_without_link(path, content)
        finally:
            _sync(path.parent)
    finally:
        made.unlink(missing_ok=True)
    return True


def _create_without_link(path: Path, content: bytes) -> bool:
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        return False
    _sync(path)
    return True


def _made(folder: Path) -> Path:
    """The folder, made with those above it if it was not there; their names are on the disk then."""
    if not folder.is_dir():
        _made(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)
    return folder


def _sync(path: Path) -> None:
    """Returns when the disk has what a file or folder holds."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Gives a temporary folder beside `folder` and renames it to that when the block ends without an exception.

    Args:
        folder: Where it will be; its parents are made. It may be there already if it is empty.

    Raises:
        UserError: Something else is there, or it cannot be written.
    """
    folder = folder.absolute()
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise UserError(f"{folder}: must be a new or an empty folder; name another")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
            made = Path(scratch) / folder.name
            made.mkdir()
            mode = made.stat().st_mode & 0o666
            yield made
            for path in made.rglob("*"):
                if path.is_file():
                    path.chmod(mode)
                _sync(path)
            _sync(made)
            made.rename(folder)
            _sync(folder.parent)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error}); name another place") from None
