"""Files below the root of a store, on any pyarrow filesystem: bytes, and JSON with its checksum."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.fs

from latentsync_ray.config.errors import UserError
from latentsync_ray.core.atomic import create_file, new_file
from latentsync_ray.core.hashing import digest
from latentsync_ray.store.errors import DamagedEntryError
from latentsync_ray.store.filesystem import OBJECT_STORES, open_filesystem, reason_of, refuse_credentials
from latentsync_ray.store.patience import Patience

_LEAST_LENGTH = 1000
"""Of a JSON file: Arrow does not retry to read from S3 what is shorter than the text of the server's error."""


class Files:
    """Files by name from the root; folders appear when something is written.

    Args:
        uri: A folder, or a URI of one, as pyarrow takes it: `s3://bucket/prefix?endpoint_override=host:9000`, `gs://`.
            Credentials are found in the usual places of the environment.
        patience: With a storage that fails for a while.

    Raises:
        UserError: The place cannot be used.
    """

    def __init__(self, uri: str, patience: Patience | None = None):
        self._given, self.patience = uri, patience or Patience()
        refuse_credentials(uri)
        try:
            self.uri = uri if "://" in uri else str(Path(uri).expanduser().absolute())
            if "://" in uri:
                self._filesystem, self.root = open_filesystem(uri)
            else:
                self._filesystem, self.root = pyarrow.fs.LocalFileSystem(), self.uri
            self._has_folders = not isinstance(self._filesystem, OBJECT_STORES)
            self.is_local = isinstance(self._filesystem, pyarrow.fs.LocalFileSystem)
            """Whether its files are files of this system, to be written bit by bit."""
            self._check_place()
        except (OSError, ValueError, RuntimeError) as error:  # the last one for the home of an unknown user
            raise self._unusable(error) from None

    def check_writable(self) -> None:
        """Refuses a place in which nothing can be written; leaves no trace.

        Raises:
            UserError: With the reason.
        """
        if not self.is_local:  # an object store says so only when something is written
            return
        try:
            existing = next(folder for folder in (Path(self.root), *Path(self.root).parents) if folder.exists())
            tempfile.TemporaryFile(dir=existing).close()
        except OSError as error:
            raise self._unusable(error) from None

    def _unusable(self, error: Exception) -> UserError:
        rule = "must be a folder or URI that can be written"
        return UserError(f"storage {self._given}: {rule} ({reason_of(error)}); name another")

    def files(self, folder: str) -> dict[str, int]:
        """Bytes of all files in a folder below the store's root, however deep, by their names from the root.

        Raises:
            StorageError: The place is gone.
        """
        infos = self._list(folder, recursive=True)
        return {folder + info.path.partition(f"{self.root}/{folder}")[2]: info.size for info in infos if info.is_file}

    def modified(self, names: list[str]) -> dict[str, float]:
        """When files below the store's root were written, those that are there; in seconds on the storage's clock.

        Raises:
            StorageError: The place is gone.
        """
        paths = [f"{self.root}/{name}" for name in names]
        infos = self.patience.attempt(self.root, lambda: self._filesystem.get_file_info(paths), "read")
        return {name: info.mtime.timestamp() for name, info in zip(names, infos, strict=True) if info.is_file}

    def read_bytes(self, name: str) -> bytes | None:
        """A whole file below the store's root, or None if there is none.

        Raises:
            StorageError: The place is gone.
        """
        path = f"{self.root}/{name}"

        def read() -> bytes:
            with self._filesystem.open_input_stream(path) as stream:
                content = stream.read()
            assert isinstance(content, bytes)
            return content

        try:
            return self.patience.attempt(path, read, "read")
        except FileNotFoundError:
            return None

    def write_bytes(self, name: str, content: bytes) -> None:
        """Writes a file below the store's root, atomically.

        Raises:
            StorageError: There is no room, or the place is gone.
        """
        path = f"{self.root}/{name}"

        def write() -> None:
            if self.is_local:
                with new_file(Path(path)) as made:
                    made.write_bytes(content)
                return
            self._make_folder(path.rpartition("/")[0])
            with self._filesystem.open_output_stream(path) as stream:  # it is shown only when it is complete
                stream.write(content)

        self.patience.attempt(path, write)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """What `write_json` has written, or None if there is no such file.

        Raises:
            DamagedEntryError: The file is not what was written.
        """
        text = self.read_bytes(name)
        if text is None:
            return None
        try:
            values = json.loads(text)
            intact = values.pop("checksum") == digest(values)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DamagedEntryError(f"{self.root}/{name}: is no whole file") from None
        if not intact:
            raise DamagedEntryError(f"{self.root}/{name}: does not match its checksum")
        assert isinstance(values, dict)
        return values

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Writes plain values as JSON with their checksum, atomically."""
        self.write_bytes(name, _json_bytes(values))

    def create_json(self, name: str, values: Mapping[str, Any]) -> bool:
        """Writes plain values as `write_json` does, unless the file is there. Returns whether it was not.

        Of several processes one succeeds, except on object stores, which cannot tell.

        Raises:
            StorageError: There is no room, or the place is gone.
        """
        path, content = f"{self.root}/{name}", _json_bytes(values)

        def create() -> bool:
            if not self.is_local:
                if self._filesystem.get_file_info(path).is_file:
                    return False
                self.write_bytes(name, content)
                return True
            return create_file(Path(path), content)

        return self.patience.attempt(path, create)

    def list_files(self, folder: str) -> list[str]:
        """Names of the files directly in a folder below the store's root, sorted.

        Raises:
            StorageError: The place is gone.
        """
        return sorted(info.base_name for info in self._list(folder) if info.is_file)

    def list_folders(self, folder: str) -> list[str]:
        """Names of the folders directly in a folder below the store's root, sorted.

        Raises:
            StorageError: The place is gone.
        """
        return sorted(info.base_name for info in self._list(folder) if info.type == pyarrow.fs.FileType.Directory)

    def _list(self, folder: str, recursive: bool = False) -> list[Any]:
        place = f"{self.root}/{folder}"
        selector = pyarrow.fs.FileSelector(place, allow_not_found=True, recursive=recursive)
        infos: list[Any] = self.patience.attempt(place, lambda: self._filesystem.get_file_info(selector), "read")
        return infos

    def remove(self, name: str) -> None:
        """Deletes a file below the store's root, if it is there.

        Raises:
            StorageError: The place is gone.
        """
        path = f"{self.root}/{name}"
        with contextlib.suppress(FileNotFoundError):
            self.patience.attempt(path, lambda: self._filesystem.delete_file(path), "deleted")

    def remove_folder(self, name: str) -> None:
        """Deletes a folder below the store's root, if it is there.

        Raises:
            StorageError: The place is gone.
        """
        path = f"{self.root}/{name}"
        with contextlib.suppress(FileNotFoundError):
            self.patience.attempt(path, lambda: self._filesystem.delete_dir(path), "deleted")

    def upload(self, local: Path, name: str) -> None:
        """Copies a folder of this system below the store's root.

        Raises:
            StorageError: There is no room, or the place is gone.
        """
        path = f"{self.root}/{name}"
        self.patience.attempt(
            path, lambda: pyarrow.fs.copy_files(str(local), path, destination_filesystem=self._filesystem)
        )

    def download(self, name: str, local: Path) -> None:
        """Copies a folder below the store's root to a folder of this system.

        Raises:
            StorageError: The place is gone.
        """
        path = f"{self.root}/{name}"
        self.patience.attempt(
            path, lambda: pyarrow.fs.copy_files(path, str(local), source_filesystem=self._filesystem), "read"
        )

    def uri_of(self, name: str) -> str:
        """Names a file or folder below the store's root, for users and other programs."""
        if self.is_local:
            return f"{self.root}/{name}"
        place, mark, options = self.uri.partition("?")
        return f"{place.rstrip('/')}/{name}{mark}{options}"

    def _make_folder(self, path: str) -> None:
        if self._has_folders:
            self._filesystem.create_dir(path, recursive=True)

    def _check_place(self) -> None:
        """Fails unless the root is a folder or could be one.

        Raises:
            OSError, ValueError: With the reason.
        """
        if not self.root:
            raise ValueError("it names no folder")
        if self._filesystem.get_file_info(self.root).type == pyarrow.fs.FileType.File:
            raise NotADirectoryError("it is a file")
        bucket = self.root.partition("/")[0]
        if not self._has_folders and self._filesystem.get_file_info(bucket).type == pyarrow.fs.FileType.NotFound:
            raise FileNotFoundError(f"there is no bucket {bucket}")


def _json_bytes(values: Mapping[str, Any]) -> bytes:
    text = json.dumps({**values, "checksum": digest(values)}, allow_nan=False, indent=1)
    return f"{text:>{_LEAST_LENGTH}}\n".encode()
