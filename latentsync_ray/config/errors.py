"""How a mistake in the user's settings is told."""

from __future__ import annotations

from collections.abc import Iterator

# A broken rule: the field, the rule that its value breaks, and the remedy.
Complaint = tuple[str, str, str]


class UserError(Exception):
    """A mistake that the user can mend: one clear line, exit status 2, no traceback."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: the command cleans up and ends, as after Ctrl-C."""


def seed_complaints(seed: int) -> Iterator[Complaint]:
    """The rule of every seed."""
    if seed < 0:
        yield "seed", "must not be negative", "0 will do"
