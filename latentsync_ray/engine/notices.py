"""What the engine tells the user while it goes on."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)


class Notices:
    """Lines for the user, which are logged as well."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        """Adds a line."""
        logger.warning(line)
        self.lines.append(line)

    def add_once(self, line: str) -> None:
        """Adds a line, unless it is there."""
        if line not in self.lines:
            self.add(line)
