"""What the engine tells the user while it goes on."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)


MAX_LINES = 200
"""Further lines go to the log only, since the live view asks for all of them every second."""


class Notices:
    """Lines for the user, which are logged as well."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        """Adds a line, as long as there are not too many."""
        logger.warning(line)
        if len(self.lines) < MAX_LINES:
            self.lines.append(line)
        elif len(self.lines) == MAX_LINES:
            self.lines.append("more is in the log of the engine, in Ray's folder (/tmp/ray/session_latest/logs)")

    def add_once(self, line: str) -> None:
        """Adds a line, unless it is there."""
        if line not in self.lines:
            self.add(line)
