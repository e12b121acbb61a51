"""The table of a search: a row for each trial."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable

from latentsync_ray.config.plain import Settings
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.report.trials import TrialResult


def row(search: SearchConfig, trial: TrialResult) -> Settings:
    """A trial's row: values of all that is searched, where it ended, and its metrics there, sorted by name."""
    metrics = {name: value if math.isfinite(value) else None for name, value in sorted(trial.metrics.items())}
    return {
        "trial": trial.number,
        "role": str(trial.role),
        "status": str(trial.status),
        **{name: trial.config.get(name) for name in search.param_space},
        "transition_step": trial.transition_step,
        "global_step": trial.global_step,
        "second_stage_step": trial.second_stage_step,
        **metrics,
        "key": trial.key,
    }


def csv_text(search: SearchConfig, trials: Iterable[TrialResult]) -> str:
    """The rows of trials as `trials.csv` has them."""
    rows = [row(search, trial) for trial in trials]
    text = io.StringIO()
    columns = list(dict.fromkeys(name for values in rows for name in values))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
