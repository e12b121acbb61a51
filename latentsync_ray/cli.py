"""How every command of the project ends."""

import sys
from collections.abc import Callable
from typing import NoReturn

from latentsync_ray.config.errors import UserError


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
