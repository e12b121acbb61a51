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
import yaml

from latentsync_ray.core.segment import Segment
from latentsync_ray.engine.messages import Rank, WorkerOrder, WorkerSetup

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


def write_search(
    folder: Path,
    data_folder: Path,
    *,
    trivial: bool = True,
    stage: dict[str, Any] | None = None,
    **search: Any,
) -> Path:
    """Writes a search space over a recipe of the trivial training, or of the demo's own on two short clips."""
    recipe, stages = _trivial_recipe() if trivial else _demo_recipe(data_folder)
    recipe["transition"] = {"at_step": 8, "max_step": 16, "min_step": 4}
    for name, values in stages.items():
        values["report_every_steps"] = 4
        values["model"] = values.get("model", {}) | (stage or {}).get(name, {})
    stages["second_stage"]["num_steps"] = 8
    (folder / "recipe").mkdir(exist_ok=True)
    for name, content in {"recipe": recipe, **stages}.items():
        (folder / "recipe" / f"{name}.yaml").write_text(yaml.safe_dump(content))
    space = folder / "space.yaml"
    space.write_text(
        yaml.safe_dump({"recipe": "recipe", "baselines": False, "trial_scheduler": {"name": "fifo"}} | search)
    )
    return space


def _trivial_recipe() -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    stages = {name: {"optimizer": {"lr": 0.01}} for name in ("first_stage", "second_stage")}
    return {"training": "trivial:TrivialTraining"}, stages


def _demo_recipe(data_folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    demo = ROOT / "configs" / "demo"
    recipe = yaml.safe_load((demo / "recipe.yaml").read_text())
    for name, source in recipe["components"].items():
        recipe["components"][name] = str((demo / source).resolve())
    recipe["data"]["folder"] = str(data_folder)
    small = {"num_speakers": 2, "clips_per_speaker": 1, "num_frames": 40, "num_validation_speakers": 1}
    recipe["data"]["synthetic"] |= small
    recipe["validation"] |= {"num_samples": 2, "timesteps": [500]}
    stages = {name: yaml.safe_load((demo / f"{name}.yaml").read_text()) for name in ("first_stage", "second_stage")}
    return recipe, {name: values | {"batch_size": 2} for name, values in stages.items()}


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


def results_folder(output: str) -> Path:
    """Where a command says that its results are; on its way out Ray may add a line of its own."""
    said = [line for line in output.splitlines() if line.startswith("results: ")]
    return Path(said[-1].removeprefix("results: "))


class OneOrder:
    """An engine that has one order for everybody who asks."""

    def join(self, group: str) -> tuple[WorkerSetup, int]:
        recipe = {"transition": {"max_step": 20}, "first_stage": {}, "second_stage": {"num_steps": 20}}
        return WorkerSetup({**recipe, "training": "trivial:TrivialTraining"}), 0

    def next_order(self, group: str, number: int) -> WorkerOrder | None:
        segment = Segment("root", "first_stage", {"num_workers": 1, "num_threads": 1}, 0, 0, 4)
        return WorkerOrder(segment, None)

    def moved(self, group: str, rank: Rank) -> None:
        """Workers tell that they do not stand still."""
