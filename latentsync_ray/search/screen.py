"""What a running search looks like: pure functions of what is known of it. It fits into 60 columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from latentsync_ray.config.search import SearchConfig
from latentsync_ray.engine.messages import EngineStatus, StageTotals
from latentsync_ray.report.names import short_names
from latentsync_ray.report.trials import TrialResult, TrialStatus, best_trial
from latentsync_ray.report.words import value_text

_MOST_ROWS, _LINES_BESIDE = 16, 14
_BAR_WIDTH = 30
_MINUTES_FROM, _HOURS_FROM = 120.0, 7200.0


def duration(seconds: float) -> str:
    """A time as people say it: `80 s`, `12 min`, `3.4 h`."""
    if seconds < _MINUTES_FROM:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < _HOURS_FROM else f"{seconds / 3600:.1f} h"


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


class Screen:
    """Words and tables for one search.

    Args:
        search: What is asked.
        height: Lines of the place where it is shown.
    """

    def __init__(self, search: SearchConfig, height: int):
        self._search = search
        self._short = short_names(search.param_space)
        self._metric = search.metric.rpartition("/")[2]
        self._num_rows = max(1, min(_MOST_ROWS, height - _LINES_BESIDE))

    def phase(self, status: EngineStatus, trials: Sequence[TrialResult]) -> str:
        """What is going on, in a word or two."""
        if status.training:
            return "training"
        if status.num_groups == status.num_starting and any(trial.status == TrialStatus.RUNNING for trial in trials):
            return "starting workers"
        return "deciding" if status.trained else "starting workers"

    def body(
        self, status: EngineStatus, trials: Sequence[TrialResult], seconds: float, left: float | None
    ) -> RenderableType:
        """All that there is to see.

        Args:
            status: The engine's.
            trials: Those that have begun, by number.
            seconds: Since trials began.
            left: Seconds to the end, at most; None if that is not known.
        """
        lines = [
            self._best(trials) or "best so far: none",
            self._counts(status, trials),
            self._shared(status, trials),
        ]
        return Group(
            *([] if left is None else [_bar(seconds, left)]),
            Text("\n".join(lines)),
            self._table(trials),
            Text("\n".join(_training(status)), style="dim"),
        )

    def line(self, status: EngineStatus, trials: Sequence[TrialResult], left: float | None) -> str:
        """The same in a line."""
        parts = [self._counts(status, trials), self._shared(status, trials), self._best(trials)]
        parts.append(None if left is None else f"about {duration(left)} left")
        return "; ".join(part for part in parts if part)

    def _counts(self, status: EngineStatus, trials: Sequence[TrialResult]) -> str:
        counted = Counter(trial.status for trial in trials)
        counts = [f"{counted[status]} {status}" for status in TrialStatus if counted[status]]
        waiting = self._search.num_trials - len(trials)
        counts += [f"{waiting} to come"] if waiting > 0 else []
        starting = f", {status.num_starting} starting" if status.num_starting else ""
        groups = f"{status.num_groups - status.num_starting} worker groups{starting}"
        return f"trials: {', '.join(counts)}; {groups}"

    def _shared(self, status: EngineStatus, trials: Sequence[TrialResult]) -> str:
        asked = sum(trial.num_steps for trial in trials)
        trained = sum(totals.num_steps for totals in status.trained.values())
        shared = f" ({1 - trained / asked:.0%} shared)" if asked > trained else ""
        return f"steps: {trained:,} trained for {asked:,}{shared}"

    def _best(self, trials: Sequence[TrialResult]) -> str | None:
        """The best trial so far: of those that ran to their end, or else of all that have a result."""
        metric = self._search.metric
        best = best_trial(self._search, trials)
        if best is None:
            sign = 1 if self._search.mode == "min" else -1
            have = [trial for trial in trials if metric in trial.metrics]
            best = min(have, key=lambda trial: (sign * trial.metrics[metric], trial.number), default=None)
        if best is None:
            return None
        values = ", ".join(f"{self._short.get(name, name)} {value_text(v)}" for name, v in best.config.items())
        named = f" ({values})" if values else ""
        return f"best so far: trial {best.number}{named}: {self._metric} {best.metrics[metric]:.4g} at {_steps(best)}"

    def _table(self, trials: Sequence[TrialResult]) -> Table:
        table = Table(box=None, pad_edge=False, collapse_padding=True)
        for column in ("#", *self._short.values(), "step", self._metric, "status"):
            table.add_column(column, justify="right")
        newest = sorted(trials, key=lambda trial: (trial.status != TrialStatus.RUNNING, -trial.number))
        for trial in sorted(newest[: self._num_rows], key=lambda trial: trial.number):
            value = trial.metrics.get(self._search.metric)
            table.add_row(
                str(trial.number),
                *(value_text(trial.config.get(name), digits=3) for name in self._short),
                _steps(trial),
                "" if value is None else f"{value:.4g}",
                trial.status,
            )
        return table


def _steps(trial: TrialResult) -> str:
    """Where a trial is: `280` in stage one, `280+20` in stage two."""
    transition = trial.transition_step
    return str(trial.global_step) if transition is None else f"{transition}+{trial.second_stage_step}"


def _training(status: EngineStatus) -> list[str]:
    lines = [
        f"{now.group}: {now.segment.stage} {now.segment.start_step} to {now.segment.end_step} "
        f"for {now.num_waiters} trials"
        for now in status.training
    ]
    if status.num_queued:
        lines.append(f"{status.num_queued} segments wait for a group")
    return [*lines, *(speed_line(stage, totals) for stage, totals in status.trained.items())]


def _bar(seconds: float, left: float) -> Table:
    """How much of the time is over, and how much is left."""
    line = Table.grid(padding=(0, 1))
    whole = max(seconds + left, 1.0)
    bar = ProgressBar(total=whole, completed=seconds, width=_BAR_WIDTH)
    line.add_row(bar, f"{seconds / whole:.0%}", f"about {duration(left)} left")
    return line
