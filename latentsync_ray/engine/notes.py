"""Small files of a search in its folder: what it has spent, how often its engine was lost."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import ray

from latentsync_ray.config.errors import UserError
from latentsync_ray.engine.budget import Spent
from latentsync_ray.engine.notices import Notices
from latentsync_ray.store import SPENT_FILE, DamagedEntryError, StorageError, Store

_LOSSES_FILE = "engine_losses.json"


class SearchNotes:
    """Reads and writes the files; `folder` is set as soon as the search knows its own."""

    def __init__(self, store: Store, notices: Notices):
        self.folder = ""
        """The search's folder below the store's root."""
        self._num_losses = 0
        self._store, self._notices = store, notices

    async def write(self, name: str, values: Mapping[str, float]) -> None:
        """Writes a file; where that fails, workers meet the same, and end the search."""
        try:
            await asyncio.to_thread(self._store.write_json, f"{self.folder}/{name}", values)
        except StorageError as error:
            self._notices.add_once(str(error))

    def read_spent(self) -> Spent:
        """What the calls of the search have used before; see `read_spent`."""
        return read_spent(self._store, self.folder)

    def count_loss(self) -> int:
        """How often the engine was lost since a segment was finished, this time included if Ray has restarted it."""
        context = ray.get_runtime_context() if ray.is_initialized() else None
        if context is None or context.get_actor_id() is None or not context.was_current_actor_reconstructed:
            return 0
        file = f"{self.folder}/{_LOSSES_FILE}"
        try:
            noted = self._store.read_json(file)
        except DamagedEntryError as error:
            self._notices.add(f"{error}; losses are counted from 0")
            noted = None
        self._num_losses = 1 + (int(noted["losses"]) if noted else 0)
        self._store.write_json(file, {"losses": self._num_losses})
        return self._num_losses

    async def reset_losses(self) -> None:
        """A segment was finished, so that losses begin again at 0."""
        if self._num_losses:
            self._num_losses = 0
            await self.write(_LOSSES_FILE, {"losses": 0})


def read_spent(store: Store, folder: str) -> Spent:
    """What the calls of a search have used, nothing if there was none.

    Args:
        store: Where the search is kept.
        folder: The search's folder below the store's root.

    Raises:
        UserError: The file is not what was written.
    """
    try:
        return Spent(**(store.read_json(f"{folder}/{SPENT_FILE}") or {}))
    except DamagedEntryError as error:
        raise UserError(f"{error}, so what was spent is not known; delete it to begin at 0") from None
