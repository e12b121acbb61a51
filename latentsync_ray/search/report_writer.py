"""Writes the report of a search while it runs: every minute, after an interruption, and after a failure."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime

from latentsync_ray.report.report import write_page
from latentsync_ray.report.stored import Progress, Written
from latentsync_ray.report.summary import Summary
from latentsync_ray.store import StorageError, Store

_EVERY_SECONDS = 60.0


class ReportWriter:
    """Writes the page at once, every minute, and when the block is left by an exception.

    It only reads what the search knows. A storage that fails costs a page, never the search.

    Args:
        store: Where to; it should not be tried for long.
        folder: The search's folder below the store's root.
        summarise: What the search has come to so far.
        every_seconds: How long it waits between pages.
    """

    def __init__(
        self, store: Store, folder: str, summarise: Callable[[], Summary], every_seconds: float = _EVERY_SECONDS
    ):
        self._store, self._folder, self._summarise = store, folder, summarise
        self._every_seconds = every_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> ReportWriter:
        """Begins to write."""
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Ends writing; the page of a search that has ended is written by who knows its end."""
        self._stop.set()
        self._thread.join()
        if isinstance(error, KeyboardInterrupt):
            self._write(Progress.INTERRUPTED)
        elif error is not None:
            self._write(Progress.FAILED, str(error) or type(error).__name__)

    def _run(self) -> None:
        self._write(Progress.RUNNING)
        while not self._stop.wait(self._every_seconds):
            self._write(Progress.RUNNING)

    def _write(self, progress: Progress, error: str = "") -> None:
        try:
            write_page(self._store, self._folder, Written(self._summarise(), progress, datetime.now(UTC), error))
        except StorageError as reason:
            print(f"note: the report was not written: {reason}", flush=True)
