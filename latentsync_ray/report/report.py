"""What a search leaves behind at its end: a summary, a table, a page and the best recipe."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from typing import Any

from latentsync_ray.config.lengths import extremes
from latentsync_ray.config.loading import recipe_files, with_overrides
from latentsync_ray.config.recipe import Recipe
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.engine.messages import EngineStatus
from latentsync_ray.report.page import report_html
from latentsync_ray.report.trials import Ends, TrialLog, best_trial, num_distinct_steps, read_trials, write_trials
from latentsync_ray.store import DamagedEntryError, Store


def read_finished(store: Store, folder: str) -> dict[int, TrialLog] | None:
    """The trials of a search that has ended before without a failure, if what they stand on is still in the store.

    Args:
        store: Where the search is kept.
        folder: The search's folder below the store's root.
    """
    try:
        found = read_trials(store, folder)
    except DamagedEntryError as error:
        print(f"{error}; the search runs again and finds what it can use", flush=True)
        return None
    if found is None:
        return None
    trials, _ = found
    try:
        records = [store.read_record(trial.last["key"]) for trial in trials.values()]
    except (KeyError, DamagedEntryError):
        return None  # the search runs again, and says which it was
    ended = all(trial.status in ("finished", "stopped", "diverged") for trial in trials.values())
    return trials if ended and None not in records else None


def write_report(
    store: Store,
    folder: str,
    search: SearchConfig,
    recipe: Recipe,
    trials: dict[int, TrialLog],
    status: EngineStatus,
    exploits: list[dict[str, Any]],
    figures: Mapping[str, float],
    wall_seconds: float,
) -> bool:
    """Writes `summary.json`, `trials.csv`, `report.html` and the best recipe.

    Args:
        store: Where to.
        folder: The search's folder below the store's root.
        search: What was asked.
        recipe: The recipe before a trial's own values.
        trials: What became of each trial.
        status: The engine's at the end.
        exploits: Which trial became a clone of which.
        figures: What the training has measured of its inputs, by name.
        wall_seconds: Duration of this run.

    Returns:
        Whether no trial has failed, and one at least has run to its end.
    """
    rows = [_row(search, trials[number]) for number in sorted(trials)]
    best = best_trial(search, trials)
    write_trials(store, folder, trials, best, extremes(search, recipe, "transition.min_step")[0])
    store.write_bytes(f"{folder}/trials.csv", _csv(rows).encode())

    if best is None:
        store.remove_folder(f"{folder}/best")  # of a call before
    else:
        for name, text in recipe_files(with_overrides(recipe, best.parameters)).items():
            store.write_bytes(f"{folder}/best/{name}", text.encode())
    for trial in trials.values():
        if trial.status in ("failed", "diverged"):
            print(f"trial {trial.number} {trial.status}: {trial.error}")

    ends = Ends(recipe)
    without_sharing = sum(trial.num_steps for trial in trials.values())
    distinct = num_distinct_steps(trials)
    by_status = {
        s: sum(t.status == s for t in trials.values())
        for s in ("finished", "stopped", "diverged", "failed", "unfinished")
    }
    summary = {
        "best": best and _row(search, best),
        "trials": len(trials),
        "trials_by_status": by_status,
        "steps_trained": sum(totals.num_steps for totals in status.trained.values()),
        "steps_distinct": distinct,
        "steps_without_sharing": without_sharing,
        "steps_unfinished": sum(
            sum(ends.steps_left(trial)) for trial in trials.values() if trial.status == "unfinished"
        ),
        "stopped_by": None if status.stopped_by is None else str(status.stopped_by),
        "sharing_factor": without_sharing / distinct if distinct else 1.0,
        "gpu_seconds": status.worker_seconds,
        "train_seconds": sum(totals.train_seconds for totals in status.trained.values()),
        "validate_seconds": sum(totals.validate_seconds for totals in status.trained.values()),
        "wall_seconds": wall_seconds,
        "exploits": exploits,
        "inputs": dict(figures),
        "notices": list(status.notices),
    }
    store.write_json(f"{folder}/summary.json", summary)
    store.write_bytes(f"{folder}/report.html", report_html(search, trials, summary).encode())
    if best is not None:
        parameters = "".join(f", {name} {_text(value)}" for name, value in best.parameters.items())
        print(
            f"best: trial {best.number}, {search.metric} {best.last[search.metric]:.4g}, "
            f"transition at step {best.transition_step}{parameters}"
        )
    else:
        print("best: none, since no trial has run to its end")
    print(
        f"steps: {summary['steps_trained']} trained now, {distinct} distinct, {without_sharing} without sharing "
        f"(factor {summary['sharing_factor']:.2f})"
    )
    if by_status["unfinished"]:
        print(
            f"stopped by {status.stopped_by}; unfinished: {by_status['unfinished']} of {len(trials)} trials, "
            f"at most {summary['steps_unfinished']} steps; raise it and run the same command again to go on"
        )
    return by_status["failed"] == 0 and by_status["finished"] > 0


def _row(search: SearchConfig, trial: TrialLog) -> dict[str, Any]:
    last = trial.last
    metrics = {name: value for name, value in sorted(last.items()) if name.startswith(("val/", "train/"))}
    return {
        "trial": trial.number,
        "status": trial.status,
        **{name: trial.parameters.get(name) for name in search.param_space},
        "transition_step": trial.transition_step,
        "global_step": last.get("global_step", 0),
        "second_stage_step": last.get("second_stage_step", 0),
        **{name: value if math.isfinite(value) else None for name, value in metrics.items()},
        "key": last.get("key"),
    }


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _csv(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
