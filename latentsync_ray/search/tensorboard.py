"""TensorBoard logs of a search's trials, written while it runs."""

from __future__ import annotations

import dataclasses
import io
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from latentsync_ray.config.plain import Parameters
from latentsync_ray.report.names import name_of
from latentsync_ray.report.trials import Boundary, TrialResult, TrialStatus
from latentsync_ray.store import DamagedEntryError, StorageError, Store


class EventFile:
    """A TensorBoard log of one trial.

    It is written in the foreground: `SummaryWriter` has a thread for each, which dies with a traceback when a disk is
    full. It is open only while something is added: a search may have more trials than a process may open files.

    Args:
        path: The file; what is added comes behind what it has.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = self.is_new = not path.exists()
        self._file = path.open("ab")
        self._records = RecordWriter(self._file)
        if is_new:
            self._write(file_version="brain.Event:2")

    def __enter__(self) -> EventFile:
        """Itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Makes what was added visible; what cannot be written is lost."""
        try:
            self._file.flush()
        finally:
            self._file.raw.close()

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Adds a point to a curve."""
        self._write(step=step, summary=summary.scalar(name, value))  # type: ignore[no-untyped-call]

    def add_values(self, values: Parameters, metric: str) -> None:
        """Says which hyperparameters the run has, for TensorBoard's HPARAMS tab, and which metric they are for."""
        shown = {n: v if isinstance(v, bool | int | float | str) else str(v) for n, v in values.items()}
        for part in summary.hparams(shown, {metric: 0.0})[:2]:  # type: ignore[no-untyped-call]
            self._write(summary=part)

    def add_end(self) -> None:
        """Says that the run has ended, for the same tab."""
        self._write(summary=summary.hparams({}, {})[2])  # type: ignore[no-untyped-call]

    def add_image(self, name: str, picture: np.ndarray[Any, Any], step: int) -> None:
        """Adds a picture, uint8 (H, W, 3)."""
        image = summary.image(name, picture, dataformats="HWC")  # type: ignore[no-untyped-call]
        self._write(step=step, summary=image)

    def _write(self, **content: Any) -> None:
        self._records.write(Event(wall_time=time.time(), **content).SerializeToString())


class TensorBoardLog:
    """Writes the TensorBoard logs of a search's trials, and does nothing else.

    To an object store, which takes whole files only, a trial's log is brought when the trial has ended.
    """

    def __init__(self, store: Store, folder: str, metric: str):
        self._store, self._metric = store, metric
        self._folder = f"{folder}/tensorboard"
        # A search that goes on reports everything again, so logs are written again from the start.
        store.remove_folder(self._folder)
        self._scratch = None if store.is_local else tempfile.TemporaryDirectory(prefix="latentsync_ray-")
        self._local = Path(self._scratch.name if self._scratch else f"{store.root}/{self._folder}")
        self._file = f"events.out.tfevents.{int(time.time())}"
        self._to_bring: set[int] = set()
        """Numbers of the trials whose logs have grown since they were brought to the object store."""
        self._logged: set[tuple[int, str]] = set()
        """Number of a trial, and the key of a segment that its log has, or `end`."""
        self._lock = threading.Lock()

    def __enter__(self) -> TensorBoardLog:
        """Itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Completes the logs."""
        for number in list(self._to_bring):
            self._bring(number)

    def follow(self, trial: TrialResult) -> None:
        """Losses of every step, by stage, and validation metrics and picture of a boundary; and a trial's end."""
        with self._lock:
            try:
                if trial.last is not None and self._is_new(trial, trial.last.key):
                    self._write_events(trial, trial.last)
                if trial.last is not None and trial.status != TrialStatus.RUNNING and self._is_new(trial, "end"):
                    with self._log_of(trial.number) as log:
                        log.add_end()
                    self._bring(trial.number)
            except OSError as error:
                raise StorageError.at(str(self._local), error) from error

    def _is_new(self, trial: TrialResult, what: str) -> bool:
        is_new = (trial.number, what) not in self._logged
        self._logged.add((trial.number, what))
        return is_new

    def _bring(self, number: int) -> None:
        name = name_of(number)
        if self._scratch is not None and number in self._to_bring:
            self._store.upload(self._local / name, f"{self._folder}/{name}")
            self._to_bring.discard(number)

    def _log_of(self, number: int) -> EventFile:
        self._to_bring.add(number)
        return EventFile(self._local / name_of(number) / self._file)

    def _write_events(self, trial: TrialResult, reached: Boundary) -> None:
        with self._log_of(trial.number) as log:
            if log.is_new:
                log.add_values({**trial.config, "role": str(trial.role)}, self._metric)
            self._add_boundary(log, trial.number, reached)

    def _add_boundary(self, log: EventFile, number: int, reached: Boundary) -> None:
        stage, end = reached.stage, reached.global_step
        try:
            record = self._store.read_record(reached.key)
        except DamagedEntryError as error:
            print(f"note: trial {number}: {error}; TensorBoard lacks its losses", flush=True)
            record = None
        steps = record.steps if record is not None else []
        for step, losses in enumerate(steps, start=end - len(steps) + 1):
            for name, value in losses.items():
                log.add_scalar(f"{stage}/train/{name}", value, step)
        for group, figures in (("speed", record.speed), ("timings", record.timings)) if record is not None else ():
            for name, value in dataclasses.asdict(figures).items():
                if value is not None:
                    log.add_scalar(f"{stage}/{group}/{name}", value, end)
        try:
            preview = self._store.read_preview(record) if record is not None else None
        except DamagedEntryError as error:
            print(f"note: trial {number}: {error}; TensorBoard lacks it", flush=True)
            preview = None
        if preview is not None:
            log.add_image(f"{stage}/preview", np.asarray(Image.open(io.BytesIO(preview))), end)
        for name, value in reached.metrics.items():
            if name.startswith("val/"):
                log.add_scalar(f"{stage}/{name}", value, end)
                log.add_scalar(name, value, end)
