"""The answers that trials wait for, and those that will not change any more."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from latentsync_ray.engine.known import Result
from latentsync_ray.engine.messages import Failed, Unfinished
from latentsync_ray.engine.orders import Order


class Answers:
    """Who waits for which segment, and which segments will not come."""

    def __init__(self) -> None:
        self.broken: Failed | None = None
        """The answer to everybody, once nobody can be helped any more."""
        self.released: Unfinished | None = None
        """The answer to all who ask for what is not trained, once the search ends at a budget."""
        self._given_up: dict[str, Failed] = {}
        self._waiting: dict[str, asyncio.Future[Result | Failed | Unfinished]] = {}

    def final(self, key: str) -> Failed | None:
        """The answer to who asks for a segment that will not come."""
        return self._given_up.get(key) or self.broken

    async def wait(self, key: str) -> Result | Failed | Unfinished:
        """What becomes of a segment."""
        answer = self._waiting.setdefault(key, asyncio.get_running_loop().create_future())
        return await asyncio.shield(answer)

    def give(self, key: str, answer: Result | Failed | Unfinished) -> None:
        """Tells all who wait for a segment what became of it."""
        waiting = self._waiting.pop(key, None)
        if waiting is not None:
            waiting.set_result(answer)

    def give_up(self, orders: Iterable[Order]) -> None:
        """These segments will not come: tells all who wait for them why, by the last of their errors."""
        for order in orders:
            segment = order.segment
            place = f"{segment.stage} from step {segment.start_step} to {segment.end_step}"
            answer = self._given_up[segment.key] = Failed(f"{place}: {order.errors[-1]}", order.diverged)
            self.give(segment.key, answer)

    def release(self, answer: Unfinished) -> None:
        """Nothing more is trained: lets go of all who wait, and of those who will."""
        self.released = answer
        for key in list(self._waiting):
            self.give(key, answer)
