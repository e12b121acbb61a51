"""What integration tests look at and wait for."""

from __future__ import annotations

import csv
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Outcome:
    """What a search has left behind."""

    folder: Path
    store: Path
    exit_status: int

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "summary.json").read_text())

    @property
    def trials(self) -> list[dict[str, str]]:
        with (self.folder / "trials.csv").open() as stream:
            return list(csv.DictReader(stream))

    @property
    def results(self) -> list[dict[str, str]]:
        """The trials without their keys, which differ where nothing is shared."""
        return [{name: value for name, value in trial.items() if name != "key"} for trial in self.trials]

    @property
    def weights(self) -> list[str]:
        """Hash of each trial's last weights."""
        records = self.records
        return [records[trial["key"]]["weights_sha256"] for trial in self.trials]

    @property
    def executed(self) -> list[str]:
        """Keys that workers began to train, from their own notes."""
        return sorted(file.parts[-3] for file in self.store.glob("segments/*/executions/*.json"))

    @property
    def records(self) -> dict[str, dict[str, Any]]:
        files = self.store.glob("segments/*/record.json")
        return {file.parts[-2]: json.loads(file.read_text()) for file in files}


def when(condition: Callable[[], bool], then: Callable[[], None], seconds: float = 60) -> threading.Thread:
    """Does something as soon as a condition holds, beside the search."""

    def watch() -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if condition():
                then()
                return
            time.sleep(0.05)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def ray_processes(title: str) -> list[psutil.Process]:
    """Processes of the cluster whose title contains a text."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(title in part for part in process.info["cmdline"] or []):
            found.append(process)
    return found
