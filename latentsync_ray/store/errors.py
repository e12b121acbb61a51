"""What can be wrong with a store."""

from __future__ import annotations

from latentsync_ray.config.errors import UserError
from latentsync_ray.store.filesystem import reason_of


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
