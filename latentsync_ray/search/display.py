"""Where a running search is shown: a part of the terminal or notebook that is redrawn, or a line now and then.

Light to import, so that it says what is going on from the first second, while Ray is still being imported.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from latentsync_ray.cli import going_on, when_interrupted

_LINE_SECONDS = 15.0
"""How often a line is printed where nothing can be redrawn."""
_REDRAWN_PER_SECOND = 2


@dataclass(frozen=True)
class Shown:
    """What there is to see of a search at one moment."""

    phase: str
    """What is going on, in a word or two."""
    body: RenderableType
    """For a place that is redrawn."""
    line: str
    """The same for a pipe."""


class Display:
    """Shows phases, notes and the state of a search, and answers an interrupt at once.

    Args:
        console: Where to.
        clock: Seconds.
        say: Writes the answer to an interrupt; it may be called in the middle of any other output.
    """

    def __init__(
        self,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] | None = None,
    ):
        self.steps_kept: int | None = None
        """Steps that are stored of this search; None as long as that is not known."""
        self.at_once: Callable[[], None] = _nothing
        """Removes what would stay behind where a second interrupt ends the process."""
        self._console, self._clock = console or Console(), clock
        self._say = say or _to_standard_error
        self._started, self._last_line = clock(), -_LINE_SECONDS
        self._phase = ""
        self._named: set[str] = set()
        self._shown: Shown | None = None
        self._stopped = self._answered = False
        self._leaving = contextlib.ExitStack()
        self._live = self._make_live()

    def _make_live(self) -> Live | None:
        """Something that is redrawn, where the console can do that: rich needs ipywidgets in a notebook."""
        notebook = self._console.is_jupyter and find_spec("ipywidgets") is not None
        if not (self._console.is_terminal and not self._console.is_dumb_terminal) and not notebook:
            return None
        return Live(console=self._console, get_renderable=self._render, refresh_per_second=_REDRAWN_PER_SECOND)

    @property
    def height(self) -> int:
        """Lines that there are."""
        return self._console.height

    def __enter__(self) -> Display:
        """Begins to show."""
        self._leaving.enter_context(when_interrupted(self.interrupted, lambda: self.at_once()))
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Ends the display; an interrupt that nobody has answered yet is answered."""
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.interrupted()
        self.stop()
        self._leaving.close()

    def stop(self) -> None:
        """Nothing is redrawn from now on: what is printed comes below."""
        self._stopped = True
        if self._live is not None:
            self._live.stop()

    def phase(self, words: str) -> None:
        """Names what is going on."""
        self._phase = words
        if self._live is None and words not in self._named and not self._stopped:
            self._named.add(words)
            self._console.print(f"{self._seconds()}  {words}", highlight=False)

    def note(self, line: str) -> None:
        """Tells the user something that stays."""
        self._console.print(f"note: {line}", markup=False, highlight=False, soft_wrap=True)

    def show(self, shown: Shown) -> None:
        """Shows the newest state of the search."""
        self.phase(shown.phase)
        self._shown = shown
        if self._live is None and not self._stopped and self._clock() - self._last_line >= _LINE_SECONDS:
            self._last_line = self._clock()
            line = f"{self._seconds()}  {shown.line}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def interrupted(self) -> None:
        """Says at once what is kept and how to go on; nothing more is shown."""
        if self._answered:
            return
        self._answered = True
        with contextlib.suppress(RuntimeError):  # in the middle of another line, which Python does not allow
            self.stop()
        kept = "all that was trained is" if self.steps_kept is None else f"{self.steps_kept:,} steps are"
        self._say(f"stopping: {kept} kept; go on with: {going_on()}")

    def _seconds(self) -> str:
        return f"{self._clock() - self._started:4.0f} s"

    def _render(self) -> RenderableType:
        if self._shown is None and self._stopped:
            return ""
        head = Text(f"{self._seconds()}  {self._phase}", style="bold")
        return head if self._shown is None else Group(head, self._shown.body)


def _nothing() -> None:
    pass


def _to_standard_error(line: str) -> None:
    """Writes past Python's buffers, which may be in use where an interrupt comes."""
    with contextlib.suppress(OSError):  # nobody is there to read it
        os.write(2, f"{line}\n".encode())
