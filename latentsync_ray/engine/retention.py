"""Which states are needed: where trials stand, and what nobody needs any more."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from latentsync_ray.config.recipe import FIRST_STAGE
from latentsync_ray.core.segment import Segment
from latentsync_ray.engine.orders import OrderBook
from latentsync_ray.engine.states import KnownStates

MAX_AHEAD = 32
"""A trial is told of at most this many segments before it asks for them."""


class Retention:
    """Where trials stand in the tree of segments, and which states that makes unneeded.

    Args:
        states: What is finished, and what of it can be restored.
        book: The orders, which need the states that they start from.
    """

    def __init__(self, states: KnownStates, book: OrderBook):
        self._states, self._book = states, book
        self.positions: dict[str, str] = {}
        """Trial -> key of the last segment that it was given."""
        self.previous: dict[str, str] = {}
        """Trial that goes on -> key of the segment before that, whose state is kept in case the newest is damaged."""
        self.destinations: dict[str, str] = {}
        """Trial that was lost and walks its lineage again -> key of the last segment that it had been given."""
        self.checkpoints: dict[str, str] = {}
        """Trial -> key of the state that its newest checkpoint points to."""
        self.told_ahead: dict[str, list[str]] = {}
        """Trial -> keys of what it was told ahead; until it is heard of again, it may be at any of them."""
        self._num_standing: defaultdict[str, int] = defaultdict(int)
        """Key -> number of trials that need it: as position, the one before, checkpoint, or told of it ahead."""

    def move(self, trial: str, segment: Segment) -> list[str]:
        """A trial is given a finished segment. Returns keys whose states nobody needs any more."""
        passed = {self._left_behind(trial, segment)}
        passed.update(self._states.droppable_ancestors(segment))  # some may have had to be trained again
        passed.update(self._forget_ahead(trial))
        self._place(trial, segment)
        return sorted(key for key in passed if self.unneeded(key))

    def tell_ahead(self, trial: str) -> list[str]:
        """Keys of the finished segments that come next, as long as only one way leads on from where a trial is.

        The trial need not ask for them; their states are kept for it until it is heard of again.
        """
        ahead: list[str] = []
        successor = self._states.only_successor(self.positions[trial])
        while len(ahead) < MAX_AHEAD and successor is not None:
            ahead.append(successor)
            self._num_standing[successor] += 1
            successor = self._states.only_successor(successor)
        self.told_ahead[trial] = ahead
        return ahead

    def checkpoint(self, trial: str, key: str) -> list[str]:
        """A trial's checkpoint points to a state, from which a clone may start. Returns keys no longer needed."""
        before, self.checkpoints[trial] = self.checkpoints.get(trial), key
        self._num_standing[key] += 1
        if before is None:
            return []
        self._stand_down(before)
        return [before] if self.unneeded(before) else []

    def end_trial(self, trial: str, last: str | None = None) -> list[str]:
        """A trial has ended, and needs the last state that it was given.

        Args:
            trial: Which.
            last: Key of the segment where it was, which it may not have asked for.

        Returns:
            Keys whose states nobody needs any more.
        """
        passed = self._forget_ahead(trial)
        unneeded = self.move(trial, self._states.done[last]) if last in passed else []
        if trial in self.previous:
            passed.append(self.previous.pop(trial))
            self._stand_down(passed[-1])
        return unneeded + [key for key in dict.fromkeys(passed) if self.unneeded(key) and key not in unneeded]

    def forget_trial(self, trial: str) -> None:
        """A trial that has ended needs not even the last state that it was given."""
        self._place(trial, None)

    def forget_all(self) -> None:
        """All trials have ended; the states that they were given stay for those that come after them."""
        for standing in (self.positions, self.previous, self.destinations, self.checkpoints):
            for key in standing.values():
                self._stand_down(key)
            standing.clear()

    def unneeded(self, key: str) -> bool:
        """Whether a state is there that no trial needs and from which none can branch."""
        return (
            key in self._states.done
            and self._states.droppable(key)
            and key not in self._num_standing
            and not self._book.starts_order(key)
        )

    def spare_states(self, live: Iterable[str], num_trials: int) -> list[str]:
        """Keys of states that a full storage can do without.

        These are the ones before a trial's position, and, once no trial can begin a branch any more, those of stage
        one that are kept for branches.

        Args:
            live: Trials that go on.
            num_trials: How many there will be in all.
        """
        done = self._states.done
        told = (key for ahead in self.told_ahead.values() for key in ahead)
        standing = {*self.positions.values(), *self.destinations.values(), *self.checkpoints.values(), *told}
        unneeded = self._states.kept.intersection(done).difference(standing, self._book.starting_from())
        spare = {key for key in unneeded.intersection(self.previous.values()) if self._states.droppable(key)}
        stages = [done[self.positions[trial]].stage for trial in live if trial in self.positions]
        if len(self.positions) >= num_trials and FIRST_STAGE not in stages:
            spare.update(key for key in unneeded if done[key].stage == FIRST_STAGE)
        return sorted(spare)

    def _left_behind(self, trial: str, segment: Segment) -> str:
        """Key of the segment that the trial needs no longer: where it was, or, on a way taken twice, where it is."""
        position = self.positions.get(trial, segment.parent)
        destination = self.destinations.pop(trial, None)
        if destination is not None:
            self._stand_down(destination)
        furthest = destination or (self.told_ahead.get(trial) or [position])[-1]
        if self._states.leads_to(segment, furthest):
            self.destinations[trial] = furthest
            self._num_standing[furthest] += 1
            return position
        return furthest

    def _forget_ahead(self, trial: str) -> list[str]:
        """A trial is where it says, and no longer somewhere in what it was told ahead, whose keys are returned."""
        ahead = self.told_ahead.pop(trial, [])
        for key in ahead:
            self._stand_down(key)
        return ahead

    def _place(self, trial: str, position: Segment | None) -> None:
        for standing in (self.positions, self.previous):
            left = standing.pop(trial, None)
            if left is not None:
                self._stand_down(left)
        if position is not None:
            self.positions[trial], self.previous[trial] = position.key, position.parent
            self._num_standing[position.key] += 1
            self._num_standing[position.parent] += 1

    def _stand_down(self, key: str) -> None:
        self._num_standing[key] -= 1
        if not self._num_standing[key]:
            del self._num_standing[key]
