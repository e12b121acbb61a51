"""Follows a running search and has it shown; it only reads, so that a search does not depend on it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import ray

from latentsync_ray.config.lengths import longest_trial
from latentsync_ray.config.recipe import Recipe
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.engine.messages import EngineStatus
from latentsync_ray.report.remaining import Ends
from latentsync_ray.report.trials import TrialResult, TrialStatus
from latentsync_ray.search.display import Display, Shown
from latentsync_ray.search.progress import Progress
from latentsync_ray.search.screen import Screen

_POLL_SECONDS = 1.0


class LiveView:
    """Asks the engine every second what is going on, and shows it with what trials have reported."""

    def __init__(self, engine: Any, progress: Progress, search: SearchConfig, recipe: Recipe, display: Display):
        self._engine, self._progress, self._display = engine, progress, display
        self._screen = Screen(search, display.height)
        self._remaining = Remaining(search, recipe)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._num_notices = 0
        self._started = time.monotonic()

    def __enter__(self) -> LiveView:
        """Begins to follow."""
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Ends; what was shown last stays."""
        self._stop.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            try:
                status = ray.get(self._engine.status.remote(), timeout=5)
            except (ray.exceptions.RayError, ValueError):
                continue  # the engine is being restarted or the search is ending: the next look tells
            if not self._stop.is_set():
                self._look(status)  # what goes wrong here ends this thread with a traceback; the search goes on

    def _look(self, status: EngineStatus) -> None:
        notices = status.notices
        for line in notices[min(self._num_notices, len(notices)) :]:
            self._display.note(line)
        self._num_notices = len(notices)
        self._display.steps_kept = status.num_steps_stored
        trials = [self._progress.trials[number] for number in sorted(self._progress.trials)]
        left = self._remaining.seconds(status, trials)
        seconds = time.monotonic() - self._started
        self._display.show(
            Shown(
                self._screen.phase(status, trials),
                self._screen.body(status, trials, seconds, left),
                self._screen.line(status, trials, left),
            )
        )


class Remaining:
    """Estimates how long a search still takes.

    Args:
        search: What is asked.
        recipe: The recipe that trials vary.
    """

    def __init__(self, search: SearchConfig, recipe: Recipe):
        self._search, self._ends, self._longest = search, Ends(recipe), longest_trial(search, recipe)

    def seconds(self, status: EngineStatus, trials: Sequence[TrialResult]) -> float | None:
        """An upper estimate: every live trial runs to its end, and stage one is shared as far as it can be.

        Args:
            status: The engine's.
            trials: Those that have begun.

        Returns:
            Seconds, or None before the first segment of stage one is trained.
        """
        per_step = {stage: totals.seconds_per_step for stage, totals in status.trained.items()}
        if "first_stage" not in per_step:
            return None
        first = per_step["first_stage"]
        second = per_step.get("second_stage", 2 * first)
        left = [self._ends.steps_left(trial) for trial in trials if trial.status == TrialStatus.RUNNING]
        trunk = max((steps.first_stage for steps in left), default=0)
        num_to_begin = max(0, self._search.num_trials - len(trials))
        branches = num_to_begin * self._longest.second_stage + sum(steps.second_stage for steps in left)
        groups = max(1, min(self._search.workers.max_groups, status.num_groups))
        return float(max(trunk * first, (trunk * first + branches * second) / groups))
