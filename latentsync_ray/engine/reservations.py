"""Gives back what lost worker groups have reserved, which may be all that one that starts waits for."""

from __future__ import annotations

import asyncio

from latentsync_ray.cluster.ray_internals import NoDashboardError, remove_placement_groups
from latentsync_ray.config.search import WorkersConfig
from latentsync_ray.engine.groups import empty_places
from latentsync_ray.engine.notices import Notices


class Reservations:
    """Watches placement groups, from when a group or the engine itself has been lost.

    Args:
        workers: What is reserved for them.
        notices: For a cluster that cannot be asked.
    """

    def __init__(self, workers: WorkersConfig, notices: Notices):
        self._workers, self._notices = workers, notices
        self._watching = False
        self._empty: set[str] = set()
        """Placement groups without a worker when last looked for."""

    def watch(self) -> None:
        """Some may be left behind."""
        self._watching = True

    async def give_back(self) -> None:
        """Removes what was reserved for no worker twice in a row: a group's workers come a moment after its place."""
        if not self._watching:
            return
        try:
            empty = await asyncio.to_thread(empty_places, self._workers)
        except NoDashboardError as error:
            self._notices.add(f"what lost groups have reserved cannot be given back: {error}")
            self._watching = False
            return
        await asyncio.to_thread(remove_placement_groups, empty & self._empty)
        self._empty = empty
