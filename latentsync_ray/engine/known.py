"""The results of known segments, kept for the trials that ask again."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from latentsync_ray.core.record import Record, StoredState
from latentsync_ray.core.segment import Metrics, Segment
from latentsync_ray.engine.dispatcher import Dispatcher
from latentsync_ray.engine.messages import ParentState
from latentsync_ray.engine.notices import Notices
from latentsync_ray.store import DamagedEntryError, Store


@dataclass(frozen=True, slots=True)
class Result:
    """What is asked for again of a segment's record; the losses of every step stay in the store alone."""

    metrics: Metrics
    state: StoredState
    """As it was written; whether it is still there is for the dispatcher to say."""
    environment: Mapping[str, str]
    """Where it was trained."""


class KnownSegments:
    """Results in memory, found in the store when they are asked for first.

    Args:
        store: Where records are.
        dispatcher: Learns of every segment that becomes known.
        notices: For damaged records.
    """

    def __init__(self, store: Store, dispatcher: Dispatcher, notices: Notices):
        self.results: dict[str, Result] = {}
        """By key."""
        self._store, self._dispatcher, self._notices = store, dispatcher, notices

    async def find(self, key: str) -> Result | None:
        """A segment's result from memory or the store; a damaged record counts as absent.

        Raises:
            StorageError: The store cannot be read.
        """
        if key not in self.results:
            try:
                record, has_state = await asyncio.to_thread(self._look_up, key)
            except DamagedEntryError as error:
                self._notices.add(f"{error}; it will be trained again")
                return None
            if record is not None and key not in self.results:
                self.add(record.segment, Result(record.metrics, record.state, record.environment))
                self._dispatcher.add_done(self.with_shared_config(record.segment), has_state)
        return self.results.get(key)  # a worker may have published it while the store was read

    def add(self, segment: Segment, result: Result) -> None:
        """Makes a result known; tells the user where a lineage goes on elsewhere than it began."""
        parent = self.results.get(segment.parent)
        if parent is not None and parent.environment == result.environment:
            result = Result(result.metrics, result.state, parent.environment)  # not one for each of 100,000
        self.results[segment.key] = result
        if parent is not None and parent.environment != result.environment:
            names = sorted(parent.environment.keys() | result.environment.keys())
            unlike = [name for name in names if parent.environment.get(name) != result.environment.get(name)]
            before, after = (
                ", ".join(f"{name} {one.environment.get(name)}" for name in unlike) for one in (parent, result)
            )
            self._notices.add_once(
                f"segments of one lineage were trained under {before} and under {after}, so their last bits may be "
                "others than those of one machine (environment: strict keeps them apart)"
            )

    def _look_up(self, key: str) -> tuple[Record | None, bool]:
        """A segment's record, and whether its state can be restored."""
        record = self._store.read_record(key)
        return record, record is not None and self._store.has_state(record)

    async def find_or_learn(self, segment: Segment) -> Result | None:
        """A segment's result; if there is none, its ancestors are known afterwards, so that it can be ordered.

        Raises:
            DamagedEntryError: An ancestor is gone.
            StorageError: The store cannot be read.
        """
        result = await self.find(segment.key)
        if result is None:
            await self.learn_ancestors(segment)
            result = self.results.get(segment.key)  # it may have been finished meanwhile
        return result

    async def learn_ancestors(self, segment: Segment) -> None:
        """Tells the dispatcher of stored ancestors, back to one whose state is kept.

        Raises:
            DamagedEntryError: One of them is gone.
            StorageError: The store cannot be read.
        """
        while (missing := self._dispatcher.book.missing_ancestor(segment)) is not None:
            if await self.find(missing) is None:
                # The trial holds the ancestors' metrics but their records are gone: only a fresh walk can mend that.
                raise DamagedEntryError(f"segment {missing}: its record is gone; run the same command again")

    def with_shared_config(self, segment: Segment) -> Segment:
        """The segment with its parent's settings object, so that not each of 100,000 has its own."""
        parent = self._dispatcher.states.done.get(segment.parent)
        return segment if parent is None else segment.sharing_config(parent)

    def parent_state(self, segment: Segment) -> ParentState | None:
        """The state that a segment starts from; None at step 0."""
        parent = self.results.get(segment.parent)
        if parent is None:
            return None
        return ParentState(self._dispatcher.states.done[segment.parent].stage, parent.state.sha256)
