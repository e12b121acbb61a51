"""Coroutines that nobody waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from latentsync_ray.engine.notices import Notices


class Background:
    """Runs coroutines, and tells the user of those that fail; asyncio itself forgets a task nobody refers to.

    Args:
        notices: For errors.
    """

    def __init__(self, notices: Notices):
        self._notices = notices
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Starts a coroutine."""
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._end)
        return task

    async def wait(self) -> None:
        """Waits until all have ended, in one way or another."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._notices.add(f"engine: {task.exception()}")
