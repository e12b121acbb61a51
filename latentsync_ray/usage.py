"""How a command explains itself: examples first, then what it does, its arguments and its exit statuses."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from latentsync_ray.cli import program

_DONE, _MISTAKE = "0 done", "2 mistake in what was given"
_STOPPED = "130, 143, 129 ended by Ctrl-C, SIGTERM, SIGHUP"
STATUSES = (_DONE, _MISTAKE, _STOPPED)
"""Exit statuses of every command."""
SEARCH_STATUSES = (_DONE, "1 a trial failed or none ended", _MISTAKE, "3 a budget is used up", _STOPPED)
"""Exit statuses of a command that trains trials."""


class CommandParser(argparse.ArgumentParser):
    """The arguments of a command, whose help is one screen.

    Args:
        command: Its name, such as `train-syncnet`; None for the list of commands.
        usage: Its positional arguments and required options, and `[options]` if there are others.
        summary: What it does, in a line or two.
        examples: What to type behind the command's name, each with a comment if one helps.
        statuses: What its exit status says.
    """

    def __init__(
        self,
        command: str | None,
        usage: str,
        summary: str,
        examples: Sequence[str],
        statuses: Sequence[str] = STATUSES,
    ):
        super().__init__(
            prog=program(command),
            usage=f"{program(command)} {usage}",
            epilog=f"exit status: {'; '.join(statuses)}" if statuses else None,
            formatter_class=_Wide,
            add_help=False,
        )
        self.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
        self._head = "\n".join([*(f"{self.prog} {example}" for example in examples), "", summary, "", ""])

    def format_help(self) -> str:
        """The text behind `--help`."""
        return self._head + super().format_help()


class _Wide(argparse.HelpFormatter):
    """Keeps a long option and its explanation on one line."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30)
