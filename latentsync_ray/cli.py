"""How every command of the project is called in its usage line, and how it ends."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from latentsync_ray.config.recipe import UserError

SCRIPT = "latentsync-ray"


def program(command: str | None = None) -> str:
    """How this process was started, for usage lines.

    Args:
        command: the command's name, such as `train-syncnet`; None for the list of commands.

    Returns:
        `latentsync-ray train-syncnet` for the console script, else `python -m latentsync_ray.train_syncnet`.
    """
    if Path(sys.argv[0]).stem == SCRIPT:
        return f"{SCRIPT} {command}" if command else SCRIPT
    return f"python -m latentsync_ray.{command.replace('-', '_')}" if command else "python -m latentsync_ray"


def run_cli(main: Callable[[], int | None]) -> NoReturn:
    """Runs a command and leaves the process with its exit status.

    Args:
        main: the command; what it returns is the exit status, None meaning 0.

    A `UserError` becomes one line on standard error and status 2, Ctrl-C becomes status 130; any other exception
    is a fault of ours and keeps its traceback.
    """
    try:
        status = main() or 0
    except UserError as error:
        print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    sys.exit(status)
