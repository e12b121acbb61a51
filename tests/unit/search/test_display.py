"""How a search is shown in a pipe and on a terminal, and what an interrupt is answered."""

import io
import signal
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from latentsync_ray.search.display import Display, Shown


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def made(**console: Any) -> tuple[Display, Clock, io.StringIO, list[str]]:
    clock, text, said = Clock(), io.StringIO(), []
    return Display(Console(file=text, width=60, **console), clock, said.append), clock, text, said


def test_a_pipe_gets_each_phase_once_and_a_line_now_and_then() -> None:
    display, clock, text, _ = made()
    with display:
        display.phase("starting Ray")
        for second in range(1, 41):
            clock.now = second
            phase = "training" if second % 2 else "deciding"
            display.show(Shown(phase, Text("a table"), f"best so far: {second}"))
        display.note("a worker was lost [group-1]")
        display.stop()
        display.show(Shown("training", Text(""), "after the end"))
    assert text.getvalue().splitlines() == [
        "   0 s  starting Ray",
        "   1 s  training",
        "   1 s  best so far: 1",
        "   2 s  deciding",
        "  16 s  best so far: 16",
        "  31 s  best so far: 31",
        "note: a worker was lost [group-1]",
    ]


def test_a_terminal_shows_the_phase_from_the_start_and_then_all() -> None:
    display, clock, text, _ = made(force_terminal=True, force_interactive=True, _environ={"TERM": "xterm"})
    with display:
        display.phase("starting Ray")
        display._live.refresh()
        assert "   0 s  starting Ray" in text.getvalue()
        clock.now = 83.0
        display.show(Shown("training", Text("a table"), "a line"))
    assert "  83 s  training" in text.getvalue() and "a table" in text.getvalue()
    assert "a line" not in text.getvalue()


def test_a_notebook_is_redrawn_where_rich_can_do_that(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_widgets in (True, False):
        monkeypatch.setattr("latentsync_ray.search.display.find_spec", lambda name, has=has_widgets: has or None)
        display, _, _, _ = made(force_jupyter=True)
        assert (display._live is not None) == has_widgets


def test_an_interrupt_says_what_is_kept_and_how_to_go_on() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as where no command runs
    display, _, _, said = made()
    with display:
        display.interrupted()
        display.interrupted()
    assert said == ["stopping: all that was trained is kept; go on with: the same call"]
    display, _, _, said = made()
    with pytest.raises(KeyboardInterrupt), display:
        display.steps_kept = 1280
        raise KeyboardInterrupt
    assert said == ["stopping: 1,280 steps are kept; go on with: the same call"]
