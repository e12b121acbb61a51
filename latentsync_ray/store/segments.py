"""Records and states of segments, by key."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.fs
from safetensors import SafetensorError

from latentsync_ray.config.errors import UserError
from latentsync_ray.config.plain import settings
from latentsync_ray.core.atomic import new_file
from latentsync_ray.core.hashing import file_sha256
from latentsync_ray.core.record import Partial, Record, StoredState, Trained
from latentsync_ray.core.terms import Terms
from latentsync_ray.store.errors import DamagedEntryError, StorageError
from latentsync_ray.store.files import Files

if TYPE_CHECKING:
    import torch

IDENTITY_FILE = "store.json"
"""At the store's root: what tells it from others."""
RECORD_FILE, STATE_FILE, PREVIEW_FILE = "record.json", "state.safetensors", "preview.png"
TERMS_FILE = "terms.json"
"""The validation terms of each sample, so that records stay small."""
PARTIAL_FILES = "partial.json", "partial.safetensors"
"""What a worker keeps that had to leave: how far it came, and the state there."""
_FORMAT = 2


class Store(Files):
    """Records and states by key, beside the files of searches."""

    def identity(self) -> str | None:
        """What tells this store from others, made when it is first asked for; None where a URI is the same for all.

        Raises:
            StorageError: There is no room, or the place is gone.
            UserError: It cannot be read.
        """
        if not self.is_local:
            return None
        self.create_json(IDENTITY_FILE, {"id": uuid.uuid4().hex})
        try:
            values = self.read_json(IDENTITY_FILE)
        except DamagedEntryError as error:
            raise UserError(f"{error}; delete it if no search runs in this store") from None
        assert values is not None
        return str(values["id"])

    def check_identity(self, expected: str | None) -> None:
        """Refuses another store at the same place, as a node has it that does not share the storage.

        Raises:
            StorageError: It is another one, or none.
        """
        if expected is None:
            return
        try:
            values = self.read_json(IDENTITY_FILE)
        except DamagedEntryError:
            values = None
        if values is None or values["id"] != expected:
            raise StorageError(
                f"storage {self.root}: node {socket.gethostname()} has another folder there than the node of the "
                "command; mount one that all nodes share, or use an object store"
            )

    def read_record(self, key: str) -> Record | None:
        """The record of a segment, or None if there is none.

        Raises:
            DamagedEntryError: The record is not what was written.
        """
        name = f"segments/{key}/{RECORD_FILE}"
        values = self.read_json(name)
        if values is None:
            return None
        if (values.get("key"), values.get("format")) != (key, _FORMAT):
            raise DamagedEntryError(f"{self.root}/{name}: is not the record of this segment")
        try:
            return Record.from_json(values)
        except (LookupError, TypeError) as error:
            raise DamagedEntryError(f"{self.root}/{name}: is no record ({error})") from None

    def publish(
        self,
        trained: Trained,
        state: Mapping[str, torch.Tensor],
        preview: bytes | None = None,
        terms: Terms | None = None,
    ) -> Record:
        """Writes a segment's preview (a PNG), validation terms and state, then its record, which is returned.

        Raises:
            StorageError: There is no room, or the place is gone; then nothing has changed.
        """
        key = trained.segment.key
        preview_sha256 = None
        if preview is not None:
            self.write_bytes(f"segments/{key}/{PREVIEW_FILE}", preview)
            preview_sha256 = hashlib.sha256(preview).hexdigest()
        terms_sha256 = None
        if terms is not None:
            content = json.dumps(terms.to_json()).encode()
            self.write_bytes(f"segments/{key}/{TERMS_FILE}", content)
            terms_sha256 = hashlib.sha256(content).hexdigest()
        known = {field.name: getattr(trained, field.name) for field in fields(Trained)}
        stored = self._write_state(f"segments/{key}/{STATE_FILE}", state)
        record = Record(**known, state=stored, preview_sha256=preview_sha256, terms_sha256=terms_sha256)
        self._write_record(record)
        return record

    def read_terms(self, record: Record) -> Terms | None:
        """The validation terms of each sample at a segment's end, or None if its training does not tell them.

        Raises:
            DamagedEntryError: The file is gone or is not what was written.
        """
        content = self._read_beside(record, TERMS_FILE, record.terms_sha256)
        return None if content is None else Terms.from_json(json.loads(content))

    def read_preview(self, record: Record) -> bytes | None:
        """The picture of a segment, a PNG, or None if its training shows none.

        Raises:
            DamagedEntryError: The file is gone or is not what was written.
        """
        return self._read_beside(record, PREVIEW_FILE, record.preview_sha256)

    def _read_beside(self, record: Record, file: str, sha256: str | None) -> bytes | None:
        if sha256 is None:
            return None
        name = f"segments/{record.key}/{file}"
        content = self.read_bytes(name)
        if content is None:
            raise DamagedEntryError(f"{self.root}/{name}: is gone")
        if hashlib.sha256(content).hexdigest() != sha256:
            raise DamagedEntryError(f"{self.root}/{name}: does not match its checksum")
        return content

    def check_state(self, record: Record) -> None:
        """Reads a stored state through, without keeping it.

        Raises:
            DamagedEntryError: The file is gone or is not what was written.
        """
        path = f"{self.root}/segments/{record.key}/{STATE_FILE}"

        def sha256_of() -> str:
            with self._filesystem.open_input_stream(path) as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()

        try:
            sha256 = self.patience.attempt(path, sha256_of, "read")
        except FileNotFoundError:
            raise DamagedEntryError(f"{path}: is gone") from None
        if sha256 != record.state.sha256:
            raise DamagedEntryError(f"{path}: does not match its checksum")

    def has_state(self, record: Record) -> bool:
        """Whether the state that a record promises is there, with all its bytes; its checksum is for who reads it.

        Raises:
            StorageError: The place is gone.
        """
        path = f"{self.root}/segments/{record.key}/{STATE_FILE}"
        return record.state.kept and self._size(path) == record.state.num_bytes

    def read_state(self, key: str, sha256: str) -> dict[str, torch.Tensor]:
        """The tensors of a segment's stored state, on the CPU.

        Args:
            key: The segment.
            sha256: Of the file, by its record.

        Raises:
            DamagedEntryError: The file is gone or is not what was written.
        """
        return self._read_state(f"segments/{key}/{STATE_FILE}", sha256)

    def drop_state(self, key: str) -> None:
        """Deletes a state; the record says so first, so that it never promises what is gone.

        A damaged record promises nothing: it counts as absent.
        """
        try:
            record = self.read_record(key)
        except DamagedEntryError:
            record = None
        if record is not None and not record.state.kept:
            return
        if record is not None:
            self._write_record(replace(record, state=replace(record.state, kept=False)))
        self.remove(f"segments/{key}/{STATE_FILE}")

    def write_partial(
        self,
        key: str,
        steps: list[Mapping[str, float]],
        start_weights_sha256: str | None,
        state: Mapping[str, torch.Tensor],
    ) -> None:
        """Keeps what is trained of a segment that has to be left: what its record will need, and the state there.

        Raises:
            StorageError: There is no room, or the place is gone; then nothing has changed.
        """
        progress, tensors = (f"segments/{key}/{file}" for file in PARTIAL_FILES)
        partial = Partial(steps, start_weights_sha256, self._write_state(tensors, state))
        self.write_json(progress, settings(asdict(partial)))

    def read_partial(self, key: str) -> Partial | None:
        """What was kept of a segment, or None if nothing was.

        Raises:
            DamagedEntryError: The file is not what was written.
        """
        values = self.read_json(f"segments/{key}/{PARTIAL_FILES[0]}")
        return None if values is None else Partial(**{**values, "state": StoredState(**values["state"])})

    def read_partial_state(self, key: str, partial: Partial) -> dict[str, torch.Tensor]:
        """As `read_state`, for what was kept of a segment."""
        return self._read_state(f"segments/{key}/{PARTIAL_FILES[1]}", partial.state.sha256)

    def drop_partial(self, key: str) -> None:
        """Deletes what was kept of a segment, if there is anything."""
        for file in PARTIAL_FILES:
            self.remove(f"segments/{key}/{file}")

    def log_execution(self, key: str, group: str) -> None:
        """Notes that this process, of a worker group, begins to train a segment."""
        entry = {"key": key, "group": group, "pid": os.getpid(), "host": socket.gethostname()}
        self.write_json(f"segments/{key}/executions/{uuid.uuid4().hex}.json", entry)

    def executions(self) -> list[str]:
        """Keys of all segments that workers began to train, once for each time, sorted."""
        places = (name.split("/") for name in self.files("segments") if name.endswith(".json"))
        return sorted(place[1] for place in places if place[2] == "executions")

    def keys(self) -> list[str]:
        """Keys of all segments with a record, sorted."""
        return sorted(name.split("/")[1] for name in self.files("segments") if name.endswith(f"/{RECORD_FILE}"))

    def state_bytes(self) -> int:
        """Size of all stored states together, partial and half-written ones included; the rest is small."""
        files = self.files("segments")
        return sum(size for name, size in files.items() if not name.endswith((".json", ".png")))

    def _write_record(self, record: Record) -> None:
        self.write_json(f"segments/{record.key}/{RECORD_FILE}", {"format": _FORMAT, **record.to_json()})

    def _size(self, path: str) -> int | None:
        info = self.patience.attempt(path, lambda: self._filesystem.get_file_info(path), "read")
        size: int | None = info.size
        return size

    def _read_state(self, name: str, sha256: str) -> dict[str, torch.Tensor]:
        from safetensors.torch import load, load_file  # imported here: trials and the engine need no torch

        path = f"{self.root}/{name}"

        def read() -> dict[str, torch.Tensor]:
            content = b""
            if not self.is_local:
                with self._filesystem.open_input_stream(path) as stream:
                    content = stream.read()
            if (file_sha256(Path(path)) if self.is_local else hashlib.sha256(content).hexdigest()) != sha256:
                raise DamagedEntryError(f"{path}: does not match its checksum")
            tensors: dict[str, torch.Tensor] = load_file(path) if self.is_local else load(content)
            return tensors

        try:
            return self.patience.attempt(path, read, "read")
        except FileNotFoundError:
            raise DamagedEntryError(f"{path}: is gone") from None
        except SafetensorError as error:
            raise DamagedEntryError(f"{path}: {error}") from None

    def _write_state(self, name: str, state: Mapping[str, torch.Tensor]) -> StoredState:
        from safetensors.torch import save_file

        path = f"{self.root}/{name}"
        with tempfile.TemporaryDirectory() as scratch:
            made = Path(scratch) / STATE_FILE
            if not self.is_local:
                save_file(dict(state), made)  # if there is no room for it here, that is not the storage's fault

            def write() -> StoredState:
                if not self.is_local:
                    self._make_folder(path.rpartition("/")[0])
                    pyarrow.fs.copy_files(str(made), path, destination_filesystem=self._filesystem)
                    return _stored(made)
                with new_file(Path(path)) as file:
                    try:
                        save_file(dict(state), file)
                    except SafetensorError as error:
                        number = re.search(r"os error (\d+)", str(error))  # the system's, if it was the system's
                        raise OSError(int(number[1]) if number else None, str(error)) from None
                    return _stored(file)

            stored = self.patience.attempt(path, write)
        if (found := self._size(path)) != stored.num_bytes:
            raise StorageError.at(path, OSError(f"{found} of {stored.num_bytes} bytes have arrived"))
        return stored


def _stored(file: Path) -> StoredState:
    return StoredState(file_sha256(file), file.stat().st_size)
