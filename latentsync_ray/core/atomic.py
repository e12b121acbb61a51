"""Files and folders that appear at once, with all that is in them."""

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

    Args:
        path: Where the file will be; one that is there is replaced. Its folder is made.

    Raises:
        OSError: It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f"{path.name}.{uuid.uuid4().hex}{TEMPORARY}")
    try:
        yield made
        made.replace(path)
    finally:
        made.unlink(missing_ok=True)


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
            yield made
            made.rename(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error}); name another place") from None
