"""Content-addressed records and states of segments, on any pyarrow filesystem; a command looks after them.

    latentsync-ray store STORAGE {list,lineage,verify,collect}

    <root>/segments/<key>/record.json          metrics, lineage, timings, checksums; kept for ever
    <root>/segments/<key>/state.safetensors    model, optimizer moments, step; may be dropped
    <root>/segments/<key>/preview.png          what the model makes of a validation sample, if the training shows it
    <root>/segments/<key>/executions/*.json    one small file for each time that a worker began to train it
    <root>/segments/<key>/partial.*            how far a worker came that had to leave its node, and the state there

The state is written first, the record last, each atomically: a record that exists is complete. Every file that is
ever read again has a SHA-256: a state and a preview in their record, JSON in itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.fs
from safetensors import SafetensorError

from latentsync_ray.config.errors import UserError
from latentsync_ray.core.hashing import digest
from latentsync_ray.store.filesystem import OBJECT_STORES, open_filesystem, reason_of

if TYPE_CHECKING:
    import torch

TRIALS_FILE = "trials.json"
"""In a search's folder: what became of its trials."""
SPENT_FILE = "spent.json"
"""In a search's folder: what it has used; written anew every few seconds while it runs."""
_FORMAT = 1
_LEAST_LENGTH = 1000
"""Of a JSON file: Arrow does not retry to read from S3 what is shorter than the text of the server's error."""


class DamagedEntryError(Exception):
    """A stored file that its checksum does not match, or that cannot be read as what it should be."""


class StorageError(UserError):
    """The storage cannot be written or read any more: it is full, or gone."""

    @classmethod
    def at(cls, place: str, error: Exception, done: str = "written") -> StorageError:
        """What to tell the user of a write (or what else was to be `done`) that has failed."""
        return cls(
            f"storage {place}: cannot be {done} ({reason_of(error)}); make room or mend it and run the same command "
            "again, what was trained is kept"
        )


class Store:
    """Records and states by key; its folders appear when something is written.

    Args:
        uri: A folder, or a URI of one, as pyarrow takes it: `s3://bucket/prefix?endpoint_override=host:9000`, `gs://`.
            Credentials are found in the usual places of the environment.

    Raises:
        UserError: The place cannot be used.
    """

    def __init__(self, uri: str):
        self._given = uri
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

    def read_record(self, key: str) -> dict[str, Any] | None:
        """The record of a segment, or None if there is none.

        Raises:
            DamagedEntryError: The record is not what was written.
        """
        name = f"segments/{key}/record.json"
        record = self.read_json(name)
        if record is not None and (record.get("key"), record.get("format")) != (key, _FORMAT):
            raise DamagedEntryError(f"{self.root}/{name}: is not the record of this segment")
        return record

    def publish(
        self, key: str, record: Mapping[str, Any], state: Mapping[str, torch.Tensor], preview: bytes | None = None
    ) -> dict[str, Any]:
        """Writes a segment's preview (a PNG) and state, then its record. Returns the record as stored.

        Raises:
            StorageError: There is no room, or the place is gone; then nothing has changed.
        """
        preview_sha256 = None
        if preview is not None:
            self.write_bytes(f"segments/{key}/preview.png", preview)
            preview_sha256 = hashlib.sha256(preview).hexdigest()
        entries = {"preview_sha256": preview_sha256, "state": self._write_state(f"{key}/state", state)}
        stored = {"format": _FORMAT, "key": key, **record, **entries}
        self.write_json(f"segments/{key}/record.json", stored)
        return stored

    def read_preview(self, record: Mapping[str, Any]) -> bytes | None:
        """The picture of a segment, a PNG, or None if its training shows none.

        Raises:
            DamagedEntryError: The file is gone or is not what was written.
        """
        if record.get("preview_sha256") is None:
            return None
        name = f"segments/{record['key']}/preview.png"
        content = self.read_bytes(name)
        if content is None:
            raise DamagedEntryError(f"{self.root}/{name}: is gone")
        if hashlib.sha256(content).hexdigest() != record["preview_sha256"]:
            raise DamagedEntryError(f"{self.root}/{name}: does not match its checksum")
        return content

    def check_state(self, key: str, state: Mapping[str, Any]) -> None:
        """Reads a stored state through, without keeping it.

        Args:
            key: The segment.
            state: The entry `state` of its record.

        Raises:
            DamagedEntryError: The file is gone or is not what was written.
        """
        path = f"{self.root}/segments/{key}/state.safetensors"
        try:
            with self._filesystem.open_input_stream(path) as stream:
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        except FileNotFoundError:
            raise DamagedEntryError(f"{path}: is gone") from None
        except OSError as error:
            raise StorageError.at(path, error, "read") from None
        if sha256 != state["sha256"]:
            raise DamagedEntryError(f"{path}: does not match its checksum")

    def read_state(self, key: str, state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The tensors of a stored state, on the CPU.

        Args:
            key: The segment.
            state: The entry `state` of its record.

        Raises:
            DamagedEntryError: The file is gone or is not what was written.
        """
        return self._read_state(f"{key}/state", state)

    def write_partial(self, key: str, progress: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> None:
        """Keeps what is trained of a segment that has to be left: what its record will need, and the state there.

        Raises:
            StorageError: There is no room, or the place is gone; then nothing has changed.
        """
        entry = self._write_state(f"{key}/partial", state)
        self.write_json(f"segments/{key}/partial.json", {"key": key, **progress, "state": entry})

    def read_partial(self, key: str) -> dict[str, Any] | None:
        """The progress that was kept of a segment, and `state`, or None if nothing was.

        Raises:
            DamagedEntryError: The file is not what was written.
        """
        return self.read_json(f"segments/{key}/partial.json")

    def read_partial_state(self, key: str, state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """As `read_state`, for the entry `state` of `read_partial`."""
        return self._read_state(f"{key}/partial", state)

    def drop_partial(self, key: str) -> None:
        """Deletes what was kept of a segment, if there is anything."""
        self.remove(f"segments/{key}/partial.json")
        self.remove(f"segments/{key}/partial.safetensors")

    def _read_state(self, name: str, state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file  # imported here: trials and the engine need no torch

        path = f"{self.root}/segments/{name}.safetensors"
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(path)
            try:
                if not self.is_local:
                    file = Path(scratch) / "state.safetensors"
                    pyarrow.fs.copy_files(path, str(file), source_filesystem=self._filesystem)
                if _file_sha256(file) != state["sha256"]:
                    raise DamagedEntryError(f"{path}: does not match its checksum")
                tensors: dict[str, torch.Tensor] = load_file(file)
                return tensors
            except FileNotFoundError:
                raise DamagedEntryError(f"{path}: is gone") from None
            except SafetensorError as error:
                raise DamagedEntryError(f"{path}: {error}") from None
            except OSError as error:
                raise StorageError.at(path, error, "read") from None

    def drop_state(self, key: str) -> None:
        """Deletes a state; the record says so first, so that it never promises what is gone."""
        record = self.read_record(key)
        if record is None or record["state"]["status"] == "dropped":
            return
        dropped = {**record, "state": {**record["state"], "status": "dropped"}}
        self.write_json(f"segments/{key}/record.json", dropped)
        self.remove(f"segments/{key}/state.safetensors")

    def log_execution(self, key: str, entry: Mapping[str, Any]) -> None:
        """Notes that a worker begins to train a segment."""
        self.write_json(f"segments/{key}/executions/{uuid.uuid4().hex}.json", {"key": key, **entry})

    def executions(self) -> list[str]:
        """Keys of all segments that workers began to train, once for each time, sorted."""
        places = (name.split("/") for name in self.files("segments") if name.endswith(".json"))
        return sorted(place[1] for place in places if place[2] == "executions")

    def keys(self) -> list[str]:
        """Keys of all segments with a record, sorted."""
        return sorted(name.split("/")[1] for name in self.files("segments") if name.endswith("/record.json"))

    def files(self, folder: str) -> dict[str, int]:
        """Bytes of all files in a folder below the store's root, however deep, by their names from the root.

        Raises:
            StorageError: The place is gone.
        """
        infos = self._list(folder, recursive=True)
        return {folder + info.path.partition(f"{self.root}/{folder}")[2]: info.size for info in infos if info.is_file}

    def state_bytes(self) -> int:
        """Size of all stored states together; what else is stored is small."""
        files = self.files("segments")
        return sum(size for name, size in files.items() if name.endswith("/state.safetensors"))

    def modified(self, names: list[str]) -> dict[str, float]:
        """When files below the store's root were written, those that are there; in seconds on the storage's clock.

        Raises:
            StorageError: The place is gone.
        """
        try:
            infos = self._filesystem.get_file_info([f"{self.root}/{name}" for name in names])
        except OSError as error:
            raise StorageError.at(self.root, error, "read") from None
        return {name: info.mtime.timestamp() for name, info in zip(names, infos, strict=True) if info.is_file}

    def read_bytes(self, name: str) -> bytes | None:
        """A whole file below the store's root, or None if there is none.

        Raises:
            StorageError: The place is gone.
        """
        path = f"{self.root}/{name}"
        try:
            with self._filesystem.open_input_stream(path) as stream:
                content = stream.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError.at(path, error, "read") from None
        assert isinstance(content, bytes)
        return content

    def write_bytes(self, name: str, content: bytes) -> None:
        """Writes a file below the store's root, atomically.

        Raises:
            StorageError: There is no room, or the place is gone.
        """
        path = f"{self.root}/{name}"
        try:
            self._make_folder(path.rpartition("/")[0])
            if not self.is_local:  # an object store shows an upload only when it is complete
                with self._filesystem.open_output_stream(path) as stream:
                    stream.write(content)
                return
            file = Path(f"{path}.{uuid.uuid4().hex}.tmp")
            try:
                file.write_bytes(content)
                file.replace(path)
            finally:
                file.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError.at(path, error) from None

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
        text = json.dumps({**values, "checksum": digest(values)}, allow_nan=False, indent=1)
        self.write_bytes(name, f"{text:>{_LEAST_LENGTH}}\n".encode())

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
        selector = pyarrow.fs.FileSelector(f"{self.root}/{folder}", allow_not_found=True, recursive=recursive)
        try:
            infos: list[Any] = self._filesystem.get_file_info(selector)
        except OSError as error:
            raise StorageError.at(f"{self.root}/{folder}", error, "read") from None
        return infos

    def remove(self, name: str) -> None:
        """Deletes a file below the store's root, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._filesystem.delete_file(f"{self.root}/{name}")

    def remove_folder(self, name: str) -> None:
        """Deletes a folder below the store's root, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._filesystem.delete_dir(f"{self.root}/{name}")

    def upload(self, local: Path, name: str) -> None:
        """Copies a folder of this system below the store's root.

        Raises:
            StorageError: There is no room, or the place is gone.
        """
        try:
            pyarrow.fs.copy_files(str(local), f"{self.root}/{name}", destination_filesystem=self._filesystem)
        except OSError as error:
            raise StorageError.at(f"{self.root}/{name}", error) from None

    def download(self, name: str, local: Path) -> None:
        """Copies a folder below the store's root to a folder of this system.

        Raises:
            StorageError: The place is gone.
        """
        try:
            pyarrow.fs.copy_files(f"{self.root}/{name}", str(local), source_filesystem=self._filesystem)
        except OSError as error:
            raise StorageError.at(f"{self.root}/{name}", error, "read") from None

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

    def _write_state(self, name: str, state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        from safetensors.torch import save_file

        path = f"{self.root}/segments/{name}.safetensors"
        folder = path.rpartition("/")[0]
        try:
            self._make_folder(folder)
            with tempfile.TemporaryDirectory() as scratch:
                file = Path(folder if self.is_local else scratch) / f"state.{uuid.uuid4().hex}.tmp"
                try:
                    save_file(dict(state), file)
                    entry = {"status": "kept", "sha256": _file_sha256(file), "bytes": file.stat().st_size}
                    if self.is_local:
                        file.replace(path)
                    else:
                        pyarrow.fs.copy_files(str(file), path, destination_filesystem=self._filesystem)
                finally:
                    file.unlink(missing_ok=True)
        except (OSError, SafetensorError) as error:
            raise StorageError.at(path, error) from None
        return entry


def weights_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over the names, types, shapes and bytes of the model's tensors in a state."""
    import torch

    hasher = hashlib.sha256()
    for name in sorted(state):
        if name.startswith("model."):
            tensor = state[name].contiguous()
            hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return hasher.hexdigest()


def _file_sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
