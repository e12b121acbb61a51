"""What ends a search before its trials end: a budget that is used up, or trials that are lost too often."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray
from ray import tune

from latentsync_ray.cluster.ray_internals import forgive_failures, was_lost
from latentsync_ray.engine.budget import Exceeded
from latentsync_ray.search.reported import Reported, TuneResult
from latentsync_ray.search.trial import trial_number

MAX_TRIAL_RESTARTS = 3
"""How often in a row, without getting further, a trial whose process was lost begins again; it finds what it had."""
MAX_REPLAYS = 3
"""How often the search is gone through again, at no cost, for trials that Ray Tune has given up as they began."""
_LOOK_SECONDS = 1.0


class Ending(tune.Callback, tune.Stopper):  # type: ignore[misc]
    """Decides when Ray Tune ends, whether what it has lost is gone through again, and when a trial is given up.

    At a budget it ends all trials, paused ones too, once all in flight is finished, and Ray Tune asks neither
    scheduler nor searcher about it, so that nothing is decided that an undisturbed search would decide otherwise.

    Args:
        engine: Meters the budgets.
        clock: Seconds.
    """

    def __init__(self, engine: Any, clock: Callable[[], float] = time.monotonic):
        self.stopped_by: Exceeded | None = None
        """The budget that ends the search."""
        self._engine, self._clock = engine, clock
        self._answer: ray.ObjectRef | None = None
        self._next_look = clock()
        self._num_lost = 0
        self._num_replays = 0
        self._furthest: dict[int, int] = {}

    def __getstate__(self) -> dict[str, object]:
        """Nothing: Ray Tune writes a copy into files that nobody reads."""
        return {}

    def go_again(self) -> int:
        """How many trials are lost for which the search is gone through again; 0 if it is not."""
        lost, self._num_lost = self._num_lost, 0
        if self.stopped_by is not None or self._num_replays >= MAX_REPLAYS:
            return 0
        self._num_replays += 1
        return lost

    # What Ray Tune asks as a stopper

    def __call__(self, trial_id: str, result: TuneResult) -> bool:
        """No trial is ended by itself."""
        return False

    def stop_all(self) -> bool:
        """Whether the search ends; trials that wait for the engine are let go."""
        if self.stopped_by is None:
            self._look()
        if self.stopped_by is None:
            return False
        self._engine.release.remote()
        return True

    def _look(self) -> None:
        """Asks the engine now and then, without waiting: it may be in the middle of a restart."""
        if self._answer is None and self._clock() >= self._next_look:
            self._answer = self._engine.status.remote()
            self._next_look = self._clock() + _LOOK_SECONDS
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            answer, self._answer = self._answer, None
            self.stopped_by = ray.get(answer).stopped_by

    # What Ray Tune tells as a callback

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: TuneResult, **info: Any) -> None:
        """A trial that gets on may lose processes again."""
        number, reached = trial_number(trial.trial_id, trial.config), Reported.from_result(result).boundary
        if reached is not None and reached.global_step > self._furthest.get(number, 0):
            self._furthest[number] = reached.global_step
            forgive_failures(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial is given up: Ray Tune tries it again only if it was running when its process was lost."""
        self._num_lost += was_lost(trial) and trial.should_recover()
