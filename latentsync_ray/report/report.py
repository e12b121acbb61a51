"""What a search leaves behind at its end: a summary, a table, a page and the best recipe."""

from __future__ import annotations

from datetime import UTC, datetime

from latentsync_ray.config.lengths import extremes
from latentsync_ray.config.loading import recipe_files, with_overrides
from latentsync_ray.config.recipe import Recipe
from latentsync_ray.report.compose import page_of, reported
from latentsync_ray.report.page import page_html
from latentsync_ray.report.stored import Progress, Written, write_stored
from latentsync_ray.report.summary import Summary
from latentsync_ray.report.table import csv_text
from latentsync_ray.report.trials import TrialStatus
from latentsync_ray.report.trials_file import write_trials
from latentsync_ray.report.words import value_text
from latentsync_ray.store import Store

PAGE_FILE = "report.html"
"""In a search's folder; while the search runs it is written every minute."""


def write_report(store: Store, folder: str, recipe: Recipe, summary: Summary) -> None:
    """Writes `trials.json`, `trials.csv`, `summary.json`, `report.html`, `report.json` and the best recipe.

    Args:
        store: Where to.
        folder: The search's folder below the store's root.
        recipe: The recipe before a trial's own values.
        summary: What the search has come to.
    """
    search, best = summary.search, summary.best
    write_trials(store, folder, summary.trials, best, extremes(search, recipe, "transition.min_step")[0])
    store.write_bytes(f"{folder}/trials.csv", csv_text(search, summary.trials).encode())
    if best is None:
        store.remove_folder(f"{folder}/best")  # of a call before
    else:
        for name, text in recipe_files(with_overrides(recipe, best.config)).items():
            store.write_bytes(f"{folder}/best/{name}", text.encode())
    store.write_json(f"{folder}/summary.json", summary.to_json())
    write_page(store, folder, Written(summary, Progress.ENDED, datetime.now(UTC)))


def write_page(store: Store, folder: str, written: Written) -> None:
    """Writes `report.html`, and `report.json` from which it can be made again.

    Args:
        store: Where to.
        folder: The search's folder below the store's root, with what `write_origin` has kept.
        written: What the search has come to so far.
    """
    write_stored(store, folder, written)
    store.write_bytes(f"{folder}/{PAGE_FILE}", page_html(page_of([reported(store, folder, written)])).encode())


def report_lines(summary: Summary) -> list[str]:
    """What the user is told at the end: the answer, what went wrong, what sharing has spared, and what to do next."""
    answer = summary.answer
    lines = list(answer.sentences) if answer is not None else []
    lines += [
        f"trial {trial.number} {trial.status}: {trial.error}"
        for trial in summary.trials
        if trial.status in (TrialStatus.FAILED, TrialStatus.DIVERGED)
    ]
    best, metric = summary.best, summary.search.metric
    if best is None:
        lines.append("best: none, since no trial has run to its end")
    else:
        values = "".join(f", {name} {value_text(value)}" for name, value in best.config.items())
        lines.append(
            f"best: trial {best.number}, {metric} {best.metrics[metric]:.4g}, "
            f"transition at step {best.transition_step}{values}"
        )
    lines.append(
        f"steps: {summary.steps_trained} trained now, {summary.steps_distinct} distinct, "
        f"{summary.steps_without_sharing} without sharing (factor {summary.sharing_factor:.2f})"
    )
    num_unfinished = summary.num_by_status[TrialStatus.UNFINISHED]
    if num_unfinished:
        lines.append(
            f"stopped by {summary.stopped_by}; unfinished: {num_unfinished} of {len(summary.trials)} trials, "
            f"at most {summary.steps_unfinished} steps; raise it and run the same command again to go on"
        )
    for command in answer.commands if answer is not None else ():
        lines += [f"to {command.purpose}:", f"  {command.command}"]
    return lines
