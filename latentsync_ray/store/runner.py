"""Who runs a search: one command at a time, since two would train everything twice.

Each runner has a file in the search's folder, `runner-N.json`. The next one makes file N + 1, which only one process
can; so nobody deletes what another one has just made.
"""

from __future__ import annotations

import os
import re
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import psutil

from latentsync_ray.config.errors import UserError
from latentsync_ray.core.atomic import TEMPORARY
from latentsync_ray.store import SPENT_FILE, DamagedEntryError, Store

SILENT_SECONDS = 60.0
"""A search of which nothing was heard for so long was killed; it notes every few seconds what it has spent."""


@dataclass(frozen=True)
class Runner:
    """A process that runs a search."""

    id: str
    """Unlike that of any other."""
    host: str
    """Where it runs."""
    pid: int
    """Its process there."""
    process_started: float
    """When that process started, in seconds since 1970; a number of a process is given again."""
    since: str
    """When it began to run the search, for the user."""

    @classmethod
    def this_process(cls) -> Runner:
        """This process, from now on."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(uuid.uuid4().hex, socket.gethostname(), os.getpid(), psutil.Process().create_time(), now)

    def is_gone(self) -> bool:
        """Whether the process has ended for certain, which only its own host can tell."""
        if self.host != socket.gethostname():
            return False
        try:
            return bool(psutil.Process(self.pid).create_time() != self.process_started)
        except psutil.NoSuchProcess:
            return True


@contextmanager
def sole_runner(store: Store, folder: str) -> Iterator[None]:
    """While the block lasts, this process alone runs a search.

    Object stores cannot make a file unless it is there, so that of two commands in the same second both may run.

    Args:
        store: Where the search is kept.
        folder: The search's folder below the store's root.

    Raises:
        UserError: Another process runs it.
    """
    own = Runner.this_process()
    while True:
        number, other = _newest(store, folder)
        gone = other is not None and other.is_gone()
        if number and not gone and _seconds_silent(store, folder, number) < SILENT_SECONDS:
            who = "another process" if other is None else f"process {other.pid} on {other.host}"
            raise UserError(
                f"{store.uri_of(folder)}: {who} runs this search{'' if other is None else f' since {other.since}'}; "
                f"wait for its end or stop it (if its machine is gone, wait for {SILENT_SECONDS:.0f} seconds)"
            )
        name = _name(folder, number + 1)
        if store.create_json(name, asdict(own)):  # otherwise somebody else was faster
            break
    for before in range(1, number + 1):
        store.remove(_name(folder, before))
    try:
        yield
    finally:
        store.remove(name)


def _newest(store: Store, folder: str) -> tuple[int, Runner | None]:
    """The number of the newest runner, 0 if there is none, and who it is, if it has said so yet."""
    numbers = [int(file[7:-5]) for file in store.list_files(folder) if re.fullmatch(r"runner-\d+\.json", file)]
    if not numbers:
        return 0, None
    number = max(numbers)
    try:
        values = store.read_json(_name(folder, number))
    except DamagedEntryError:
        values = None
    return number, None if values is None else Runner(**values)


def _name(folder: str, number: int) -> str:
    return f"{folder}/runner-{number}.json"


def _seconds_silent(store: Store, folder: str, number: int) -> float:
    """How long ago a runner has written its own file or what it has spent, on the storage's clock."""
    probe = f"{folder}/{uuid.uuid4().hex}{TEMPORARY}"
    store.write_bytes(probe, b"")
    heard = store.modified([probe, _name(folder, number), f"{folder}/{SPENT_FILE}"])
    store.remove(probe)
    now = heard.pop(probe)
    return now - max(heard.values(), default=0.0)
