"""TensorBoard logs of a search's trials, written while it runs."""

from __future__ import annotations

import dataclasses
import io
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

from latentsync_ray.report.trials import Boundary
from latentsync_ray.search.reported import Reported, TuneResult
from latentsync_ray.search.trial import trial_number
from latentsync_ray.store import DamagedEntryError, StorageError, Store


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


class TensorBoardLog(tune.Callback):  # type: ignore[misc]
    """Writes the TensorBoard logs of a search's trials, and does nothing else.

    To an object store, which takes whole files only, a trial's log is brought when the trial has ended.
    """

    def __init__(self, store: Store, folder: str):
        self._store = store
        self._folder = f"{folder}/tensorboard"
        # A search that goes on reports everything again, so logs are written again from the start.
        store.remove_folder(self._folder)
        self._scratch = None if store.is_local else tempfile.TemporaryDirectory(prefix="latentsync_ray-")
        self._local = Path(self._scratch.name if self._scratch else f"{store.root}/{self._folder}")
        self._writers: dict[int, EventFile] = {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: TuneResult, **info: Any) -> None:
        """Losses of every step, by stage, and validation metrics and picture of the boundary."""
        reached = Reported.from_result(result).boundary
        if reached is None:
            return
        try:
            self._write_events(trial_number(trial.trial_id, trial.config), reached)
        except OSError as error:
            raise StorageError.at(str(self._local), error) from error

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has ended, by itself or by the scheduler's decision."""
        self._bring(trial_number(trial.trial_id, trial.config))

    def close(self) -> None:
        """Completes the logs."""
        for number, writer in self._writers.items():
            writer.close()
            self._bring(number)

    def _bring(self, number: int) -> None:
        name = f"trial-{number:04d}"
        if self._scratch is not None and number in self._writers:
            self._store.upload(self._local / name, f"{self._folder}/{name}")

    def _write_events(self, number: int, reached: Boundary) -> None:
        if number not in self._writers:
            self._writers[number] = EventFile(self._local / f"trial-{number:04d}")
        writer, stage, end = self._writers[number], reached.stage, reached.global_step
        try:
            record = self._store.read_record(reached.key)
        except DamagedEntryError as error:
            print(f"note: trial {number}: {error}; TensorBoard lacks its losses", flush=True)
            record = None
        steps = record.steps if record is not None else []
        for step, losses in enumerate(steps, start=end - len(steps) + 1):
            for name, value in losses.items():
                writer.add_scalar(f"{stage}/train/{name}", value, step)
        for group, figures in (("speed", record.speed), ("timings", record.timings)) if record is not None else ():
            for name, value in dataclasses.asdict(figures).items():
                if value is not None:
                    writer.add_scalar(f"{stage}/{group}/{name}", value, end)
        try:
            preview = self._store.read_preview(record) if record is not None else None
        except DamagedEntryError as error:
            print(f"note: trial {number}: {error}; TensorBoard lacks it", flush=True)
            preview = None
        if preview is not None:
            writer.add_image(f"{stage}/preview", np.asarray(Image.open(io.BytesIO(preview))), end)
        for name, value in reached.metrics.items():
            if name.startswith("val/"):
                writer.add_scalar(f"{stage}/{name}", value, end)
                writer.add_scalar(name, value, end)
        writer.flush()
