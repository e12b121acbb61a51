"""What the search has spent, and whether a budget ends it: the one place that decides so."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict

from latentsync_ray.config.search import BudgetConfig
from latentsync_ray.engine.budget import Exceeded, Spent, exceeded
from latentsync_ray.engine.notes import SearchNotes
from latentsync_ray.engine.notices import Notices
from latentsync_ray.store import SPENT_FILE, Store

_QUIET_SECONDS = 5.0
"""At a budget, trials that have been given nothing for so long have no more to find in the store."""


class Spending:
    """Adds up what is spent.

    Args:
        budget: What the search may spend.
        store: Whose states count.
        seconds_held: Says how long worker processes have been held in this call of the search.
        clock: Seconds.
    """

    def __init__(
        self, budget: BudgetConfig, store: Store, seconds_held: Callable[[], float], clock: Callable[[], float]
    ):
        self.stored_bytes = 0 if budget.storage_gb is None else store.state_bytes()
        """Of all states in the store, if a budget asks for it."""
        self.used_up: Exceeded | None = None
        """The budget because of which nothing new begins."""
        self._budget, self._seconds_held, self._clock = budget, seconds_held, clock
        self._before = Spent()
        self._started_at = self._answered_at = clock()

    def resume(self, notes: SearchNotes) -> None:
        """Continues from what the calls of this search have spent before."""
        self._before = notes.read_spent()

    def total(self) -> Spent:
        """What all calls of the search have used."""
        return Spent(
            self._before.worker_seconds + self._seconds_held(),
            self._before.wall_seconds + self._clock() - self._started_at,
        )

    async def write_down(self, notes: SearchNotes) -> None:
        """Notes what was spent, for calls that follow."""
        await notes.write(SPENT_FILE, asdict(self.total()))

    async def check(self, make_room: Callable[[], Awaitable[None]], notices: Notices) -> None:
        """Lets nothing new begin once a budget is used up.

        Args:
            make_room: Deletes states that can be spared, if it is the budget of storage.
            notices: For the user.
        """
        over = exceeded(self._budget, self.total(), self.stored_bytes)
        if over is not None and over.is_storage:
            await make_room()
            over = exceeded(self._budget, self.total(), self.stored_bytes)
        if over is not None and self.used_up is None:
            notices.add(f"{over}; segments in flight are finished, nothing new is begun")
            self.used_up = over

    def answered(self) -> None:
        """A trial was given a segment."""
        self._answered_at = self._clock()

    def stopped_by(self, training: bool) -> Exceeded | None:
        """The budget that ends the search now, if all that had begun is finished and trials find nothing more.

        Args:
            training: Whether a group trains.
        """
        quiet = self._clock() - self._answered_at > _QUIET_SECONDS
        return self.used_up if quiet and not training else None
