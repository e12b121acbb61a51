"""How commands are called in their usage lines, and how they end: exit status, interrupts, a closed pipe."""

import io
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO

from latentsync_ray.config.errors import Terminated, UserError

SCRIPT = "latentsync-ray"


def program(command: str | None = None) -> str:
    """How a command is called, as this process was: for usage lines, and for messages that name a command.

    Args:
        command: the command's name, such as `train-syncnet`; None for the list of commands.

    Returns:
        `latentsync-ray train-syncnet` for the console script, else `python -m latentsync_ray.train_syncnet`.
    """
    if Path(sys.argv[0]).stem == SCRIPT:
        return f"{SCRIPT} {command}" if command else SCRIPT
    return f"python -m latentsync_ray.{command.replace('-', '_')}" if command else "python -m latentsync_ray"


def typed_command() -> str:
    """This process's command, to be typed again; empty in a notebook, which has none."""
    if "ipykernel" in sys.modules:
        return ""
    if Path(sys.argv[0]).stem == SCRIPT:
        return shlex.join([SCRIPT, *sys.argv[1:]])
    return shlex.join(["python", *sys.orig_argv[1:]])


def run_cli(main: Callable[[], int | None]) -> NoReturn:
    """Runs a command and leaves the process with its exit status.

    Args:
        main: the command; what it returns is the exit status, None meaning 0.

    A `UserError` becomes one line on standard error and status 2, Ctrl-C becomes status 130 and SIGTERM 143; any
    other exception is a fault of ours and keeps its traceback. A closed pipe ends printing and nothing else.
    """
    for name, stream in (("stdout", sys.__stdout__), ("stderr", sys.__stderr__)):
        if stream is not None and getattr(sys, name) is stream:
            setattr(sys, name, _until_closed(stream))
    interrupts = _Interrupts()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, interrupts)
    try:
        status = main() or 0
    except UserError as error:
        print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
        status = 2
    except KeyboardInterrupt as error:
        # What a handler raises while Ray waits comes out of Ray as a plain KeyboardInterrupt.
        terminated = isinstance(error, Terminated) or interrupts.first == signal.SIGTERM
        print("terminated" if terminated else "interrupted", file=sys.stderr)
        status = 143 if terminated else 130
    sys.exit(status)


class _Interrupts:
    """The first interrupt has a command clean up and end, the third ends it at once; in between it goes on."""

    def __init__(self) -> None:
        self.first: int | None = None
        """The signal that came first."""
        self._count = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        if self._count == 1:
            self.first = number
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        if self._count == 2:
            os.write(2, b"still cleaning up; once more ends it at once\n")
        else:
            os._exit(128 + number)


class _UntilClosed(io.TextIOWrapper):
    """A standard stream; what is written after its reader has gone is dropped."""

    def write(self, text: str) -> int:
        """Writes, or drops."""
        try:
            return super().write(text)
        except BrokenPipeError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        """Hands on what was written, or drops it."""
        try:
            super().flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        super().flush()


def _until_closed(stream: TextIO) -> _UntilClosed:
    return _UntilClosed(stream.buffer, encoding=stream.encoding, errors=stream.errors, line_buffering=True)
