"""The live view: what trains now, the trials, how much was shared, and the time left."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

import ray
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from latentsync_ray.config.lengths import longest_trial
from latentsync_ray.config.recipe import Recipe
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.engine.messages import EngineStatus, StageTotals
from latentsync_ray.report.remaining import Ends
from latentsync_ray.report.trials import TrialResult, TrialStatus
from latentsync_ray.search.progress import Progress

_POLL_SECONDS = 1.0
_PLAIN_LINE_SECONDS = 15.0
_NUM_ROWS = 16


def speed_line(stage: str, totals: StageTotals) -> str:
    """How fast a stage is trained, and what the time of its workers went into."""
    speed, seconds = totals.newest_speed, totals
    figures = [f"{speed.peak_memory_bytes / 2**30:.1f} GiB"]
    if speed.samples_per_second is not None:
        figures.insert(0, f"{speed.samples_per_second:.3g} samples/s")
    if speed.mfu is not None:
        figures.append(f"{speed.mfu:.1%} of the peak")
    parts = {
        "training": seconds.train_seconds,
        "validation": seconds.validate_seconds,
        "publishing": seconds.publish_seconds,
        "restoring": seconds.restore_seconds,
        "waiting": seconds.wait_seconds,
    }
    whole = sum(parts.values()) or 1.0
    return f"{stage}: {', '.join(figures)}; " + ", ".join(
        f"{name} {part / whole:.0%}" for name, part in parts.items()
    )


class LiveView:
    """Shows a running search; on a terminal as a table that is redrawn, elsewhere as a line now and then.

    It only reads, so that a search does not depend on it.
    """

    def __init__(self, engine: Any, progress: Progress, search: SearchConfig, recipe: Recipe):
        self._engine, self._progress, self._search = engine, progress, search
        self._ends, self._longest = Ends(recipe), longest_trial(search, recipe)
        self._console = Console()
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._num_notices = 0
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> LiveView:
        """Begins to show."""
        if self._live is not None:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Ends the display."""
        self._stop.set()
        self._thread.join(timeout=5)
        if self._live is not None:
            self._live.stop()

    def _run(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            try:
                status = ray.get(self._engine.status.remote(), timeout=5)
            except (ray.exceptions.RayError, ValueError):
                continue  # the engine is being restarted or the search is ending: the next look tells
            self._show(status)  # what goes wrong here ends this thread with a traceback; the search goes on

    def _show(self, status: EngineStatus) -> None:
        notices = status.notices
        for line in notices[min(self._num_notices, len(notices)) :]:
            self._console.print(f"note: {line}", markup=False, highlight=False, soft_wrap=True)
        self._num_notices = len(notices)
        trials = [self._progress.trials[number] for number in sorted(self._progress.trials)]
        headline = self._headline(status, trials)
        if self._live is not None:
            self._live.update(Group(headline, self._training(status), self._table(trials)), refresh=True)
        elif time.monotonic() - self._last_line >= _PLAIN_LINE_SECONDS:
            self._last_line = time.monotonic()
            self._console.print(headline, soft_wrap=True)

    def _headline(self, status: EngineStatus, trials: list[TrialResult]) -> Text:
        statuses = Counter(trial.status for trial in trials)
        asked = sum(trial.num_steps for trial in trials)
        trained = sum(totals.num_steps for totals in status.trained.values())
        shared = f"{1 - trained / asked:.0%} shared" if asked else "nothing shared yet"
        groups = f"{status.num_groups - status.num_starting} worker groups, {status.num_starting} starting"
        counts = ", ".join(f"{statuses[status]} {status}" for status in TrialStatus if statuses[status])
        left = self._seconds_left(status, trials)
        elapsed = time.monotonic() - self._started
        return Text(
            f"{elapsed:4.0f} s  trials: {counts or 'none yet'}  steps: {trained} trained for {asked} ({shared})  "
            f"{groups}, {status.num_queued} segments queued  " + (f"about {left:.0f} s left" if left else "")
        )

    def _training(self, status: EngineStatus) -> Text:
        lines = [
            f"{now.group}: {now.segment.stage} steps {now.segment.start_step} to {now.segment.end_step} "
            f"for {now.num_waiters} trials"
            for now in status.training
        ]
        lines = lines or ["no segment is being trained"]
        return Text("\n".join([*lines, *(speed_line(stage, totals) for stage, totals in status.trained.items())]))

    def _table(self, trials: list[TrialResult]) -> Table:
        table = Table(box=None, pad_edge=False)
        for column in ("trial", *self._search.param_space, "stage", "step", self._search.metric, "shared", "status"):
            table.add_column(column, justify="right")
        newest = sorted(trials, key=lambda trial: (trial.status != TrialStatus.RUNNING, -trial.number))[:_NUM_ROWS]
        for trial in sorted(newest, key=lambda trial: trial.number):
            last, step = trial.last, trial.global_step
            values = [trial.config.get(name) for name in self._search.param_space]
            table.add_row(
                str(trial.number),
                *(f"{value:.3g}" if isinstance(value, float) else str(value) for value in values),
                last.stage.removesuffix("_stage") if last else "",
                str(step),
                f"{last.metrics[self._search.metric]:.4g}" if last else "",
                f"{trial.num_steps_shared / step:.0%}" if step else "",
                trial.status,
            )
        return table

    def _seconds_left(self, status: EngineStatus, trials: list[TrialResult]) -> float | None:
        """An upper estimate: every live trial runs to its end, and stage one is shared as far as it can be."""
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
