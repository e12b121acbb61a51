"""A process of its own for rows: one that fails, hangs or runs out of memory costs itself alone."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

END_SECONDS = 5
"""In which a process may end by itself."""


class RowError(Exception):
    """Why a row has no figures; one line."""


class RowProcess:
    """Calls functions one after another in one process, which is replaced when a call has failed."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._process: Any = None
        self._pipe: Connection | None = None

    def call(self, limit_seconds: float, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function returns.

        Raises:
            RowError: It has raised, has ended its process, or is not done in time.
        """
        if self._process is None:
            self._pipe, theirs = self._context.Pipe()
            self._process = self._context.Process(target=_serve, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()  # now the pipe ends when the process does
        assert self._pipe is not None
        try:
            self._pipe.send((function, arguments))
            if not self._pipe.poll(max(0.0, limit_seconds)):
                raise RowError(f"not done after {limit_seconds:.0f} s")
            error, result = self._pipe.recv()
            if error is not None:
                raise RowError(error)
        except (EOFError, OSError):
            self._process.join(END_SECONDS)
            status = self._process.exitcode
            self.close()
            raise RowError(f"its process ended, exit status {status}") from None
        except RowError:
            self.close()
            raise
        return result

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join(END_SECONDS)
        self._process = self._pipe = None


def _serve(pipe: Connection) -> None:
    while True:
        function, arguments = pipe.recv()
        try:
            pipe.send((None, function(*arguments)))
        except Exception as error:  # whatever it is, the row says so and the next one goes on
            traceback.print_exc()
            pipe.send((f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", None))
