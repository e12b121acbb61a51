"""How commands are called in their usage lines, and how they end: exit status, interrupts, a closed pipe."""

import contextlib
import errno
import io
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO

from latentsync_ray.config.errors import Terminated, UserError

SCRIPT = "latentsync-ray"
_ENDINGS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
"""The signals that end a command, and what it says then."""
_ONE_PRESS_SECONDS = 0.5
"""Signals within this time are one interrupt: `timeout` sends its own to the process and to its group."""


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


def command_line() -> str:
    """This process's command line, ready to paste; empty where it runs none of our commands, as in a notebook."""
    if not isinstance(signal.getsignal(signal.SIGINT), _Interrupts):
        return ""
    script = Path(sys.argv[0])
    if script.stem != SCRIPT:
        return shlex.join(sys.orig_argv)
    found = shutil.which(SCRIPT)
    called = SCRIPT if found is not None and script.resolve() == Path(found).resolve() else sys.argv[0]
    return shlex.join([called, *sys.argv[1:]])


def going_on() -> str:
    """What has an interrupted command go on: its command line; from Python, the same call."""
    return command_line() or "the same call"


def run_cli(main: Callable[[], int | None]) -> NoReturn:
    """Runs a command and leaves the process with its exit status.

    Args:
        main: the command; what it returns is the exit status, None meaning 0.

    A `UserError` becomes one line on standard error and status 2. Ctrl-C, SIGTERM and SIGHUP become status 130, 143
    and 129, a second one of them at once. Any other exception is a fault of ours and keeps its traceback. A closed
    pipe or terminal ends printing and nothing else.
    """
    for name, stream in (("stdout", sys.__stdout__), ("stderr", sys.__stderr__)):
        if stream is not None and getattr(sys, name) is stream:
            setattr(sys, name, _until_closed(stream))
    interrupts = _Interrupts()
    if threading.current_thread() is threading.main_thread():
        for number in _ENDINGS:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores it
                signal.signal(number, interrupts)
    try:
        status = main() or 0
    except UserError as error:
        print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
        status = 2
    except KeyboardInterrupt as error:
        # What a handler raises while Ray waits comes out of Ray as a plain KeyboardInterrupt.
        number = interrupts.first or (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)
        print(_ENDINGS[number], file=sys.stderr)
        status = 128 + number
    sys.exit(status)


@contextlib.contextmanager
def when_interrupted(say: Callable[[], None], at_once: Callable[[], None]) -> Iterator[None]:
    """Within it, a command's interrupts are answered at once; elsewhere than in a command it changes nothing.

    Args:
        say: Called in the main thread by the first interrupt, before anything is cleaned up. That may be in the
            middle of a line to a stream, to which Python refuses to write then; `os.write` can.
        at_once: Called by the second one, before the process ends: removes what the system would leave behind.
    """
    interrupts = signal.getsignal(signal.SIGINT)
    if isinstance(interrupts, _Interrupts):
        interrupts.say, interrupts.at_once = say, at_once
    try:
        yield
    finally:
        if isinstance(interrupts, _Interrupts):
            interrupts.say = interrupts.at_once = _nothing


def _nothing() -> None:
    pass


class _Interrupts:
    """The first interrupt has a command clean up and end, the second one ends it at once, with its child processes.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.first: signal.Signals | None = None
        """The signal that came first."""
        self.say = self.at_once = _nothing
        """See `when_interrupted`."""
        self._clock, self._first_at = clock, 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.first is None:
            self.first, self._first_at = signal.Signals(number), self._clock()
            self.say()
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated
        if self._clock() - self._first_at >= _ONE_PRESS_SECONDS:
            self._end(128 + number)

    def _end(self, status: int) -> NoReturn:
        import psutil  # takes a moment, and only this needs it

        try:
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.at_once()
        finally:
            os._exit(status)


class _UntilClosed(io.TextIOWrapper):
    """A standard stream; what is written after its reader has gone is dropped."""

    def write(self, text: str) -> int:
        """Writes, or drops."""
        try:
            return super().write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        """Hands on what was written, or drops it."""
        try:
            super().flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        """Writes to nowhere from now on; the error is raised if it is another one than that the reader has gone."""
        if error.errno not in (errno.EPIPE, errno.EIO):  # of a pipe; of a terminal
            raise error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        super().flush()


def _until_closed(stream: TextIO) -> _UntilClosed:
    return _UntilClosed(stream.buffer, encoding=stream.encoding, errors=stream.errors, line_buffering=True)
