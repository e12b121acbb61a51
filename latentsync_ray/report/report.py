"""What a search leaves behind: TensorBoard logs while it runs, a summary, a table and the best recipe at its end."""

from __future__ import annotations

import csv
import io
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from ray import tune
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from latentsync_ray.config.loading import recipe_files, with_overrides
from latentsync_ray.config.recipe import Recipe
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.engine.budget import Exceeded
from latentsync_ray.engine.messages import EngineStatus
from latentsync_ray.report.page import report_html
from latentsync_ray.report.trials import TrialLog, best_trial, num_distinct_steps, read_trials, write_trials
from latentsync_ray.search.trial import parameters, trial_number
from latentsync_ray.store import DamagedEntryError, StorageError, Store

# What a trial reports itself; Ray Tune adds process ids, times and more.
_REPORTED = ("val/", "train/", "global_step", "second_stage_step", "stage", "cached", "key", "parent", "at_end")
_LOST = "The actor died unexpectedly"
"""How Ray tells of a process that was lost; one whose own code failed died of an error."""


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
    """Follows the trials of a search and writes their TensorBoard logs.

    To an object store, which takes whole files only, a trial's log is brought when the trial has ended.
    """

    def __init__(self, store: Store, folder: str):
        self.trials: dict[int, TrialLog] = {}
        self.stopped_by: Exceeded | None = None
        """The budget that ends the search, once all in flight is finished."""
        self.lost = 0
        """How many trials have failed because a process was lost that they were to take over from another trial."""
        self._store = store
        self._folder = f"{folder}/tensorboard"
        write_trials(store, folder, {}, None, 0)  # from now on it is a search that has not ended
        # A search that goes on reports everything again, so logs are written anew.
        store.remove_folder(self._folder)
        self._scratch = None if store.is_local else tempfile.TemporaryDirectory(prefix="latentsync_ray-")
        self._local = Path(self._scratch.name if self._scratch else f"{store.root}/{self._folder}")
        self._writers: dict[int, EventFile] = {}
        self._results: dict[str, dict[str, Any]] = {}
        self._furthest: dict[int, int] = {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial begins; or begins again after a pause, as a clone, or because its process was lost."""
        log = self._log(trial)
        log.parameters, log.status = parameters(trial.config), "running"

    def _log(self, trial: Any) -> TrialLog:
        number = _number(trial)
        return self.trials.setdefault(number, TrialLog(number, parameters(trial.config)))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial has reached a boundary."""
        log = self.trials[_number(trial)]
        if "error" in result:
            log.status, log.error = "diverged" if result["diverged"] else "failed", result["error"]
        if "key" not in result:
            return
        if result["global_step"] > self._furthest.get(log.number, 0):
            self._furthest[log.number] = result["global_step"]
            trial.run_metadata.num_failures = 0  # it gets on: processes that were lost before do not count
        reported = {name: value for name, value in result.items() if name.startswith(_REPORTED)}
        log.asked[result["key"]] = result["global_step"] - result["start_step"]
        if result["cached"]:
            log.shared.append(result["key"])
        self._results[result["key"]] = reported
        if log.last.get("key") == result["parent"]:
            log.results.append(reported)
        else:
            log.results = self._lineage(result["key"])
        try:
            self._write_events(log.number, result)
        except OSError as error:
            raise StorageError.at(str(self._local), error) from error

    def _lineage(self, key: str) -> list[dict[str, Any]]:
        """The results from the first boundary to this one; a clone's begin with those of its source."""
        results = []
        while key in self._results:
            results.append(self._results[key])
            key = self._results[key]["parent"]
        return results[::-1]

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has ended, by itself or by the scheduler's decision."""
        log = self.trials[_number(trial)]
        if log.status == "running":
            log.status = "finished" if log.last.get("at_end") else "stopped"
        self._bring(log.number)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has failed for good, perhaps before it began: a process that it was to take over may be lost."""
        log = self._log(trial)
        lines = _error_text(trial).strip().splitlines() or ["unknown error"]
        # Ray Tune tries a trial again only if it was running.
        self.lost += any(_LOST in line for line in lines) and trial.should_recover()
        log.status, log.error = "failed", lines[-1]

    def close(self) -> None:
        """Completes the TensorBoard logs."""
        for number, writer in self._writers.items():
            writer.close()
            self._bring(number)

    def _bring(self, number: int) -> None:
        name = f"trial-{number:04d}"
        if self._scratch is not None and number in self._writers:
            self._store.upload(self._local / name, f"{self._folder}/{name}")

    def _write_events(self, number: int, result: dict[str, Any]) -> None:
        """Losses of every step, by stage, and validation metrics and picture of the boundary."""
        if number not in self._writers:
            self._writers[number] = EventFile(self._local / f"trial-{number:04d}")
        writer, stage, end = self._writers[number], result["stage"], result["global_step"]
        try:
            record = self._store.read_record(result["key"]) or {}
        except DamagedEntryError as error:
            print(f"{error}; TensorBoard lacks its losses", flush=True)
            record = {}
        steps = record.get("steps", [])
        for step, losses in enumerate(steps, start=end - len(steps) + 1):
            for name, value in losses.items():
                writer.add_scalar(f"{stage}/train/{name}", value, step)
        try:
            preview = self._store.read_preview(record)
        except DamagedEntryError as error:
            print(f"{error}; TensorBoard lacks it", flush=True)
            preview = None
        if preview is not None:
            writer.add_image(f"{stage}/preview", np.asarray(Image.open(io.BytesIO(preview))), end)
        for name, value in result.items():
            if name.startswith("val/"):
                writer.add_scalar(f"{stage}/{name}", value, end)
                writer.add_scalar(name, value, end)
        writer.flush()


def _error_text(trial: Any) -> str:
    """What Ray Tune has written of a trial's failures; its own reader looks where that comes to lie later."""
    noted = trial.run_metadata.error_filename is not None
    return Path(trial.error_file).read_text(encoding="utf-8") if noted else ""


def _number(trial: Any) -> int:
    return trial_number(trial.trial_id, trial.config)


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
        status: The engine's at the end.
        exploits: Which trial became a clone of which.
        syncnet_accuracy: Balanced accuracy of the recipe's SyncNet on its held-out clips; None if it has none.
        wall_seconds: Duration of this run.

    Returns:
        Whether no trial has failed, and one at least has not diverged.
    """
    rows = [_row(search, trials[number]) for number in sorted(trials)]
    best = best_trial(search, trials)
    write_trials(store, folder, trials, best, recipe.transition.min_step)
    store.write_bytes(f"{folder}/trials.csv", _csv(rows).encode())

    if best is not None:
        for name, text in recipe_files(with_overrides(recipe, best.parameters)).items():
            store.write_bytes(f"{folder}/best/{name}", text.encode())
    for trial in trials.values():
        if trial.status in ("failed", "diverged"):
            print(f"trial {trial.number} {trial.status}: {trial.error}")

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
        "steps_unfinished": sum(_steps_left(recipe, t) for t in trials.values() if t.status == "unfinished"),
        "stopped_by": None if status.stopped_by is None else str(status.stopped_by),
        "sharing_factor": without_sharing / distinct if distinct else 1.0,
        "gpu_seconds": status.worker_seconds,
        "train_seconds": sum(totals.train_seconds for totals in status.trained.values()),
        "validate_seconds": sum(totals.validate_seconds for totals in status.trained.values()),
        "wall_seconds": wall_seconds,
        "exploits": exploits,
        "syncnet_accuracy": syncnet_accuracy,
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
    print(
        f"steps: {summary['steps_trained']} trained now, {distinct} distinct, {without_sharing} without sharing "
        f"(factor {summary['sharing_factor']:.2f})"
    )
    if by_status["unfinished"]:
        print(
            f"stopped by {status.stopped_by}; unfinished: {by_status['unfinished']} of {len(trials)} trials, "
            f"at most {summary['steps_unfinished']} steps; raise it and run the same command again to go on"
        )
    return by_status["failed"] == 0 and by_status["diverged"] < len(trials)


def _steps_left(recipe: Recipe, trial: TrialLog) -> int:
    """Steps to the end of a trial, at most: a transition may come sooner, and other trials may share them."""
    own, last = with_overrides(recipe, trial.parameters), trial.last
    transition = own.transition.max_step if own.transition.at_step is None else own.transition.at_step
    if trial.transition_step is not None:
        transition = trial.transition_step
    return transition + own.second_stage.num_steps - int(last.get("global_step", 0))


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
