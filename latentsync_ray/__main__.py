"""The commands: `latentsync-ray COMMAND ...`, or `python -m latentsync_ray COMMAND ...`."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType

from latentsync_ray import __version__
from latentsync_ray.cli import program, run_cli
from latentsync_ray.usage import CommandParser

COMMANDS = {
    "init": "write a working folder in which the demo runs",
    "tune": "search when to change stages, and with which learning rate",
    "train": "one two-stage training",
    "plan": "what a search would train and cost",
    "preprocess": "turn videos into clips to train on",
    "train-syncnet": "train a SyncNet on prepared clips",
    "convert": "make the SyncNet and LPIPS folders from the published files",
    "generate": "let a trial's UNet generate a clip's mouth",
    "export": "write a trial's UNet as a checkpoint",
    "report": "make the report of one search, or of several together",
    "store": "list, verify or clean up what searches have stored",
}
"""What each does. They are imported one at a time, because some of them need seconds for that."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command that is named first, or lists all. Returns the exit status."""
    width = max(map(len, COMMANDS))
    parser = CommandParser(
        None,
        "COMMAND ...",
        "\n".join(f"  {name:{width}}  {summary}" for name, summary in COMMANDS.items()),
        (f"init demo && cd demo &&\n    {program('tune')} search_spaces/transition.yaml",),
        ("that of the command; COMMAND --help says more",),
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", nargs="?", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    status: int | None = _module(options.command).main(options.arguments)
    return status or 0


def parser_of(command: str) -> CommandParser:
    """The arguments of a command."""
    made = _module(command).parser()
    assert isinstance(made, CommandParser)
    return made


def _module(command: str) -> ModuleType:
    """The module with a command's `main` and `parser`."""
    name = f"{command}.__main__" if command in ("report", "store") else command.replace("-", "_")
    return importlib.import_module(f"latentsync_ray.{name}")


def run() -> None:
    """The console script. A recipe's own training class is found in the current folder, as with `python -m`."""
    sys.path.insert(0, str(Path.cwd()))
    run_cli(main)


if __name__ == "__main__":
    run_cli(main)
