"""What a search leaves behind: TensorBoard logs while it runs, a summary, a table and the best recipe at its end."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from ray import tune
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from latentsync_ray.config import Recipe, SearchConfig
from latentsync_ray.configfiles import recipe_files, with_overrides
from latentsync_ray.picture import report_html
from latentsync_ray.store import DamagedEntryError, StorageError, Store
from latentsync_ray.trial import trial_number
from latentsync_ray.triallog import TrialLog, best_trial, num_distinct_steps

# What a trial reports itself; Ray Tune adds process ids, times and more.
_REPORTED = ("val/", "train/", "global_step", "second_stage_step", "stage", "cached", "key", "at_end")


class EventFile:
    """A TensorBoard log of one trial.

    It is written in the foreground: `SummaryWriter` has a thread for each, which dies with a traceback when a disk is
    full.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / f"events.out.tfevents.{int(time.time())}").open("wb")
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Adds a point to a curve."""
        self._write(step=step, summary=summary.scalar(name, value))  # type: ignore[no-untyped-call]

    def add_image(self, name: str, picture: np.ndarray[Any, Any], step: int) -> None:
        """Adds a picture, uint8 (H, W, 3)."""
        image = summary.image(name, picture, dataformats="HWC")  # type: ignore[no-untyped-call]
        self._write(step=step, summary=image)

    def flush(self) -> None:
        """Makes what was added visible."""
        self._file.flush()

    def close(self) -> None:
        """Ends the log; what could not be written before is lost."""
        self._file.raw.close()

    def _write(self, **content: Any) -> None:
        self._records.write(Event(wall_time=time.time(), **content).SerializeToString())


class SearchLog(tune.Callback):  # type: ignore[misc]
    """Follows the trials of a search and writes their TensorBoard logs."""

    def __init__(self, store: Store, folder: str):
        self.trials: dict[int, TrialLog] = {}
        self._store = store
        self._folder = Path(store.root) / folder / "tensorboard"
        # A search that goes on reports everything again, so logs are written anew.
        shutil.rmtree(self._folder, ignore_errors=True)
        self._writers: dict[int, EventFile] = {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial begins, or begins again after its process was lost."""
        number = trial_number(trial.trial_id)
        self.trials[number] = TrialLog(number, dict(trial.config))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial has reached a boundary."""
        log = self.trials[trial_number(trial.trial_id)]
        if "error" in result:
            log.status, log.error = "diverged" if result["diverged"] else "failed", result["error"]
        if "key" not in result:
            return
        log.results.append({name: value for name, value in result.items() if name.startswith(_REPORTED)})
        try:
            self._write_events(log.number, result)
        except OSError as error:
            raise StorageError.at(str(self._folder), error) from error

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has ended, by itself or by the scheduler's decision."""
        log = self.trials[trial_number(trial.trial_id)]
        if log.status == "running":
            log.status = "finished" if log.last.get("at_end") else "stopped"

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has failed for good."""
        log = self.trials[trial_number(trial.trial_id)]
        lines = str(trial.get_error() or "unknown error").strip().splitlines()
        log.status, log.error = "failed", lines[-1]

    def close(self) -> None:
        """Completes the TensorBoard logs."""
        for writer in self._writers.values():
            writer.close()

    def _write_events(self, number: int, result: dict[str, Any]) -> None:
        """Losses of every step, by stage, and validation metrics and picture of the boundary."""
        if number not in self._writers:
            self._writers[number] = EventFile(self._folder / f"trial-{number:04d}")
        writer, stage, end = self._writers[number], result["stage"], result["global_step"]
        try:
            record = self._store.read_record(result["key"])
        except DamagedEntryError as error:
            print(f"{error}; TensorBoard lacks its losses", flush=True)
            record = None
        steps = record["steps"] if record else []
        for step, losses in enumerate(steps, start=end - len(steps) + 1):
            for name, value in losses.items():
                writer.add_scalar(f"{stage}/train/{name}", value, step)
        preview = self._store.read_bytes(f"segments/{result['key']}/preview.png")
        if preview is not None:
            writer.add_image(f"{stage}/preview", np.asarray(Image.open(io.BytesIO(preview))), end)
        for name, value in result.items():
            if name.startswith("val/"):
                writer.add_scalar(f"{stage}/{name}", value, end)
                writer.add_scalar(name, value, end)
        writer.flush()


NOTHING_DONE: dict[str, Any] = {"trained": {}, "worker_seconds": 0.0, "notices": []}
"""The engine's words on a run that needed no engine."""


def read_finished(store: Store, folder: str) -> dict[int, TrialLog] | None:
    """The trials of a search that has ended before without a failure, if what they stand on is still in the store.

    Args:
        store: Where the search is kept.
        folder: The search's folder below the store's root.
    """
    text = store.read_bytes(f"{folder}/trials.json")
    if text is None:
        return None
    try:
        trials = {log.number: log for log in (TrialLog(**values) for values in json.loads(text))}
        records = [store.read_record(trial.last["key"]) for trial in trials.values()]
    except (ValueError, TypeError, KeyError, DamagedEntryError):
        return None  # the search runs again and finds what it can use
    ended = all(trial.status in ("finished", "stopped", "diverged") for trial in trials.values())
    return trials if ended and trials and None not in records else None


def write_report(
    store: Store,
    folder: str,
    search: SearchConfig,
    recipe: Recipe,
    trials: dict[int, TrialLog],
    status: dict[str, Any],
    syncnet_accuracy: float | None,
    wall_seconds: float,
) -> bool:
    """Writes `summary.json`, `trials.csv`, `report.html` and the best recipe.

    Args:
        store: Where to.
        folder: The search's folder below the store's root.
        search: What was asked.
        recipe: The recipe before a trial's own values.
        trials: What became of each trial.
        status: The engine's last words.
        syncnet_accuracy: Balanced accuracy of the recipe's SyncNet on its held-out clips; None if it has none.
        wall_seconds: Duration of this run.

    Returns:
        Whether no trial has failed, and one at least has not diverged.
    """
    rows = [_row(search, trials[number]) for number in sorted(trials)]
    plain = [dataclasses.asdict(trials[number]) for number in sorted(trials)]
    store.write_bytes(f"{folder}/trials.json", json.dumps(plain).encode())
    store.write_bytes(f"{folder}/trials.csv", _csv(rows).encode())

    best = best_trial(search, trials)
    if best is not None:
        for name, text in recipe_files(with_overrides(recipe, best.parameters)).items():
            store.write_bytes(f"{folder}/best/{name}", text.encode())
    for trial in trials.values():
        if trial.status in ("failed", "diverged"):
            print(f"trial {trial.number} {trial.status}: {trial.error}")

    without_sharing = sum(trial.last.get("global_step", 0) for trial in trials.values())
    distinct = num_distinct_steps(trials)
    summary = {
        "best": best and _row(search, best),
        "trials": len(trials),
        "trials_by_status": {
            s: sum(t.status == s for t in trials.values()) for s in ("finished", "stopped", "diverged", "failed")
        },
        "steps_trained": sum(totals["num_steps"] for totals in status["trained"].values()),
        "steps_distinct": distinct,
        "steps_without_sharing": without_sharing,
        "sharing_factor": without_sharing / distinct if distinct else 1.0,
        "gpu_seconds": status["worker_seconds"],
        "train_seconds": sum(totals["train_seconds"] for totals in status["trained"].values()),
        "validate_seconds": sum(totals["validate_seconds"] for totals in status["trained"].values()),
        "wall_seconds": wall_seconds,
        "syncnet_accuracy": syncnet_accuracy,
        "notices": status["notices"],
    }
    store.write_json(f"{folder}/summary.json", summary)
    store.write_bytes(f"{folder}/report.html", report_html(search, trials, summary).encode())
    if best is not None:
        parameters = "".join(f", {name} {_text(value)}" for name, value in best.parameters.items())
        print(
            f"best: trial {best.number}, {search.metric} {best.last[search.metric]:.4g}, "
            f"transition at step {best.transition_step}{parameters}"
        )
    print(
        f"steps: {summary['steps_trained']} trained now, {distinct} distinct, {without_sharing} without sharing "
        f"(factor {summary['sharing_factor']:.2f})"
    )
    by_status: dict[str, int] = summary["trials_by_status"]
    return by_status["failed"] == 0 and by_status["diverged"] < len(trials)


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
