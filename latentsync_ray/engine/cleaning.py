"""Deleting states that nobody needs any more."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from latentsync_ray.config.recipe import FIRST_STAGE
from latentsync_ray.engine.background import Background
from latentsync_ray.engine.dispatcher import Dispatcher
from latentsync_ray.engine.known import KnownSegments
from latentsync_ray.engine.notices import Notices
from latentsync_ray.engine.spending import Spending
from latentsync_ray.store import DamagedEntryError, StorageError, Store
from latentsync_ray.store.searches import Phase, Searches


class Cleaning:
    """Deletes states one after another, unless another search may need them.

    Args:
        store: Where the states are.
        dispatcher: Knows which are needed in this search.
        known: Knows how large they are.
        spending: Is told what was freed.
        notices: For what keeps states from being deleted.
        background: Where it runs.
    """

    def __init__(
        self,
        store: Store,
        dispatcher: Dispatcher,
        known: KnownSegments,
        spending: Spending,
        notices: Notices,
        background: Background,
    ):
        self._store, self._dispatcher, self._known = store, dispatcher, known
        self._spending, self._notices, self._background = spending, notices, background
        self._passed: set[str] = set()
        """Keys whose states the trials of this search have passed."""
        self._running: asyncio.Task[None] | None = None
        self._withheld: set[str] = set()
        """Of these, what another search may need that was interrupted."""
        self._trained: set[str] = set()
        """Keys of what this search has trained itself; what it has only found may be where another one stands."""
        self._searches = Searches(store)
        self._allowed = False
        """Whether no other search runs in this store, which may need any state in it."""
        self._of_others: frozenset[str] = frozenset()
        """Keys of states that other searches refer to, which have ended."""
        self._interrupted_from: int | None = None
        """Step of stage one from which searches may branch that were interrupted; None if there is no such search."""

    def delete(self, keys: Iterable[str] = ()) -> None:
        """Deletes these states, and those that could not be deleted before, as soon as that is allowed."""
        self._passed.update(keys)
        idle = self._running is None or self._running.done()
        if idle and self._passed and self._allowed:
            self._running = self._background.start(self._delete_passed())

    def forget(self) -> None:
        """All trials have ended, and others will go where they went."""
        self._passed.clear()
        self._withheld.clear()

    def trained(self, key: str) -> None:
        """This search has trained a segment."""
        self._trained.add(key)

    async def delete_spare(self, live: Iterable[str], num_trials: int) -> None:
        """Makes room: deletes what is kept for branches that no trial can begin any more.

        Args:
            live: Trials that go on.
            num_trials: How many there will be in all.
        """
        if self._allowed:
            for key in self._dispatcher.retention.spare_states(live, num_trials):
                if not self._others_may_need(key):
                    await self._delete(key)

    async def look_for_others(self, folder: str) -> None:
        """Learns what must stay: everything while another search runs in the store, and what ended ones refer to.

        Args:
            folder: Of this search, below the store's root.
        """
        allowed = False
        try:
            others = await asyncio.to_thread(self._searches.others, folder)
            allowed = not any(search.phase is Phase.RUNNING for search in others)
            before = self._interrupted_from, self._of_others
            starts = [search.keep_first_stage_from for search in others if search.phase is Phase.INTERRUPTED]
            self._interrupted_from = min(starts, default=None)
            self._of_others = frozenset().union(*(search.needed for search in others))
            for search in others:
                if search.phase is Phase.INTERRUPTED:
                    self._notices.add_once(
                        f"{search.name} was interrupted and may go on, so states that it may need are kept; if it "
                        f"never will: latentsync-ray store STORAGE collect --end {search.name}"
                    )
            if before != (self._interrupted_from, self._of_others):
                self._passed |= self._withheld
                self._withheld.clear()
        except StorageError as error:
            self._notices.add_once(str(error))
        except DamagedEntryError as error:
            remedy = "run the command of that search again, or delete its folder"
            self._notices.add_once(f"{error}, so any state may be needed and none is dropped; {remedy}")
        self._allowed = allowed

    async def _delete_passed(self) -> None:
        while self._passed and self._allowed:
            key = self._passed.pop()
            if not self._dispatcher.retention.unneeded(key):
                continue
            if self._others_may_need(key):
                self._withheld.add(key)
            else:
                await self._delete(key)

    def _others_may_need(self, key: str) -> bool:
        if key in self._of_others:
            return True
        if self._interrupted_from is None:
            return False
        segment = self._dispatcher.states.done[key]
        may_branch = segment.stage == FIRST_STAGE and segment.end_step >= self._interrupted_from
        return may_branch or key not in self._trained

    async def _delete(self, key: str) -> None:
        self._dispatcher.drop([key])
        self._spending.stored_bytes -= self._known.results[key].state.num_bytes
        await asyncio.to_thread(self._store.drop_state, key)
