"""What the integration tests share: one Ray cluster a module, one small prepared set, and recipes over both."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

# So that this process, the workers of a cluster that it starts, and commands that it runs find trivial.py.
sys.path.insert(0, str(Path(__file__).parent))
os.environ["PYTHONPATH"] = str(Path(__file__).parent)

from helpers import ROOT, Outcome


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray cluster on this machine, for all tests of a module."""
    import ray

    import latentsync_ray.search as _  # noqa: F401  (sets what Ray reads from the environment)

    ray.init(num_cpus=2, include_dashboard=True, log_to_driver=False, object_store_memory=200 * 2**20)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where synthetic clips are prepared, once for the session."""
    return tmp_path_factory.mktemp("data")


MakeSearch = Callable[..., Path]


@pytest.fixture
def make_search(tmp_path: Path, data_folder: Path) -> MakeSearch:
    """Writes a recipe with the trivial training (or the demo's own) and a search space over it."""

    def make(
        *,
        trivial: bool = True,
        stage: dict[str, Any] | None = None,
        data_folder: Path = data_folder,
        **search: Any,
    ) -> Path:
        demo = ROOT / "configs" / "demo"
        recipe = yaml.safe_load((demo / "recipe.yaml").read_text())
        for name, source in recipe["components"].items():
            recipe["components"][name] = str((demo / source).resolve())
        recipe["data"]["folder"] = str(data_folder)
        small = {"num_speakers": 2, "clips_per_speaker": 1, "num_frames": 40, "num_validation_speakers": 1}
        recipe["data"]["synthetic"] |= small
        recipe["validation"] |= {"num_samples": 2, "timesteps": [500]}
        recipe["transition"] = {"at_step": 8, "max_step": 16, "min_step": 4}
        stages = {
            name: yaml.safe_load((demo / f"{name}.yaml").read_text()) for name in ("first_stage", "second_stage")
        }
        for name, values in stages.items():
            values |= {"report_every_steps": 4, "batch_size": 2}
            values["model"] = {} if trivial else values["model"]
            values["model"] |= (stage or {}).get(name, {})
        stages["second_stage"]["num_steps"] = 8
        if trivial:
            recipe["training"] = "trivial:TrivialTraining"
            for values in stages.values():
                values["trainable_modules"] = None
                values["optimizer"] = {"lr": 0.01}
        folder = tmp_path / "recipe"
        folder.mkdir(exist_ok=True)
        for name, content in {"recipe": recipe, **stages}.items():
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
        space = tmp_path / "space.yaml"
        space.write_text(yaml.safe_dump({"recipe": "recipe", "trial_scheduler": {"name": "fifo"}} | search))
        return space

    return make


@pytest.fixture
def run_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs a search in this process; `store` names its storage below tmp_path."""

    def run(space: Path, *arguments: str, store: str = "results") -> Outcome:
        from latentsync_ray.tune import main

        status = main([str(space), f"storage={tmp_path / store}", *arguments])
        output = capsys.readouterr().out
        print(output)  # shown if the test fails
        last_line = output.strip().splitlines()[-1]
        assert last_line.startswith("results: ")
        return Outcome(Path(last_line.removeprefix("results: ")), tmp_path / store, status)

    return run
