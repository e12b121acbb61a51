"""The searches of a store, and which states each of them needs.

A search says that it has begun before it looks for its first segment, and from which step of stage one on its trials
may branch; when it ends it says what its trials refer to (`trials.json`). In between it needs what its trials have
passed last, which nobody else knows: while it runs every state is needed, and of one that was interrupted every state
that the asking search has only found. A user may give up a search that is never to go on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from latentsync_ray.config.errors import UserError
from latentsync_ray.config.recipe import FIRST_STAGE
from latentsync_ray.store import SPENT_FILE, TRIALS_FILE, Store
from latentsync_ray.store.runner import SILENT_SECONDS

GIVEN_UP_FILE = "given_up.json"
"""In a search's folder, if its user has said that it never goes on."""


class Phase(Enum):
    """How far a search is."""

    RUNNING = "running"
    INTERRUPTED = "interrupted"
    ENDED = "ended"
    GIVEN_UP = "given up"


@dataclass(frozen=True)
class StoredSearch:
    """A search as its folder shows it."""

    name: str
    """Of its folder."""
    phase: Phase
    keep_first_stage_from: int = 0
    """Stage-one states from this global_step on are needed, since branches may start there; 0 if it is not known."""
    needed: frozenset[str] = frozenset()
    """If it has ended: keys of the states where its trials ended, and where others may branch."""
    needed_by_best: frozenset[str] = frozenset()
    """Of these, where its best trial ended and where that left stage one."""


class Searches:
    """Reads the folders of searches; what has not changed is not read again.

    Args:
        store: With the searches.
    """

    def __init__(self, store: Store):
        self._store = store
        self._read: dict[str, tuple[float, StoredSearch]] = {}
        """Name -> when its trials were written, and what was read."""

    def all(self, now: float | None = None) -> list[StoredSearch]:
        """The searches of the store.

        Args:
            now: Seconds on the storage's clock; without them, what has not ended counts as running.

        Raises:
            DamagedEntryError: What one of them refers to is not known.
            StorageError: The place is gone.
        """
        names = self._store.list_folders("searches")
        files = (SPENT_FILE, TRIALS_FILE, GIVEN_UP_FILE)
        written = self._store.modified([f"searches/{name}/{file}" for name in names for file in files])
        return [self._one(name, written, now) for name in names]

    def others(self, own: str) -> list[StoredSearch]:
        """The searches of the store but one.

        Args:
            own: Folder below the store's root of the search that asks, which has just noted what it has spent.

        Raises:
            DamagedEntryError: What one of them refers to is not known.
            StorageError: The place is gone.
        """
        now = self._store.modified([f"{own}/{SPENT_FILE}"]).get(f"{own}/{SPENT_FILE}", 0.0)
        return [search for search in self.all(now) if f"searches/{search.name}" != own]

    def give_up(self, name: str) -> None:
        """Notes that a search never goes on, so that no state is kept for it; its command undoes that.

        Raises:
            UserError: There is no such search, or it has ended.
        """
        phases = {search.name: search.phase for search in self.all()}
        if name not in phases:
            raise UserError(f"--end: must be one of {', '.join(phases)}, got {name}; correct it")
        if phases[name] is Phase.ENDED:
            raise UserError(f"--end: {name} has ended; delete its folder to let go of its states")
        self._store.write_json(f"searches/{name}/{GIVEN_UP_FILE}", {"name": name})

    def _one(self, name: str, modified: dict[str, float], now: float | None) -> StoredSearch:
        heard, written, given_up = (
            modified.get(f"searches/{name}/{file}", 0.0) for file in (SPENT_FILE, TRIALS_FILE, GIVEN_UP_FILE)
        )
        known = self._read.get(name)
        if known is None or known[0] != written:
            known = self._read[name] = written, self._from_file(name)
        search = known[1]
        if search.phase is Phase.ENDED:
            return search
        if given_up:
            return replace(search, phase=Phase.GIVEN_UP)
        is_running = now is None or heard >= now - SILENT_SECONDS
        return replace(search, phase=Phase.RUNNING) if is_running else search

    def _from_file(self, name: str) -> StoredSearch:
        """A search that has ended, by its trials, or one that counts as interrupted."""
        values = self._store.read_json(f"searches/{name}/{TRIALS_FILE}")
        if values is None:
            return StoredSearch(name, Phase.INTERRUPTED)
        keep_from, needed, by_best = int(values["keep_first_stage_from"]), set[str](), set[str]()
        for trial in values["trials"]:
            results = trial["results"]
            boundaries = [result for result in results if result["stage"] == FIRST_STAGE]
            branches = [boundary for boundary in boundaries if boundary["global_step"] >= keep_from]
            needed |= {result["key"] for result in branches + results[-1:]}
            if trial["number"] == values["best"]:
                by_best |= {result["key"] for result in boundaries[-1:] + results[-1:]}
        phase = Phase.ENDED if values["trials"] else Phase.INTERRUPTED
        return StoredSearch(name, phase, keep_from, frozenset(needed), frozenset(by_best))
