"""Patience with a storage: what fails for a passing reason is tried again, for a bounded time."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from latentsync_ray.store.errors import StorageError
from latentsync_ray.store.filesystem import is_busy, reason_of

T = TypeVar("T")

_PASSING = frozenset(
    (
        errno.EAGAIN,
        errno.EIO,
        errno.ESTALE,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.ETIMEDOUT,
        errno.ENOTCONN,
        errno.EREMOTEIO,
    )
)
"""What a network filesystem says while its server is away."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0


def _tell(line: str) -> None:
    """Not `print` itself: Ray puts another function in its place, after which the first one cannot be pickled."""
    print(line, flush=True)


@dataclass(frozen=True)
class Patience:
    """Tries again with growing pauses."""

    seconds: float = 300.0
    """How long after the first failure it is given up."""
    notice: Callable[[str], None] = _tell
    """Takes a line for the user when something is tried again."""
    clock: Callable[[], float] = time.monotonic
    """Seconds."""
    sleep: Callable[[float], None] = time.sleep
    """Waits for a number of seconds."""

    def attempt(self, place: str, operation: Callable[[], T], done: str = "written") -> T:
        """What an operation on a file of the storage returns, once it succeeds.

        Args:
            place: The file or folder, for the user.
            operation: May be repeated.
            done: What it does: read or written.

        Raises:
            FileNotFoundError: There is no such file.
            StorageError: It has failed for a reason that does not pass, or for too long.
        """
        begun, pause = None, _FIRST_PAUSE
        while True:
            try:
                return operation()
            except FileNotFoundError:
                raise
            except OSError as error:
                now = self.clock()
                begun = now if begun is None else begun
                passing = error.errno in _PASSING or is_busy(error)
                if not passing or now - begun >= self.seconds:
                    raise StorageError.at(place, error, done) from None
                if now == begun:
                    self.notice(
                        f"storage {place}: cannot be {done} ({reason_of(error)}); "
                        f"this is tried again for {self.seconds / 60:g} minutes"
                    )
            self.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
