"""What the integration tests share: one Ray cluster a module, one small prepared set, and recipes over both."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# So that this process, the workers of a cluster that it starts, and commands that it runs find trivial.py.
sys.path.insert(0, str(Path(__file__).parent))
os.environ["PYTHONPATH"] = str(Path(__file__).parent)

from helpers import Outcome, results_folder, write_search

from latentsync_ray.cluster.environment import set_ray_environment


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray cluster on this machine, for all tests of a module."""
    set_ray_environment()
    import ray

    ray.init(num_cpus=2, include_dashboard=True, log_to_driver=False, object_store_memory=200 * 2**20)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where synthetic clips are prepared, once for the session."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def make_search(tmp_path: Path, data_folder: Path) -> Callable[..., Path]:
    """`helpers.write_search` below tmp_path, over the session's clips."""

    def make(**search: Any) -> Path:
        return write_search(tmp_path, **{"data_folder": data_folder} | search)

    return make


@pytest.fixture
def run_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs a search in this process; `store` names its storage below tmp_path."""

    def run(space: Path, *arguments: str, store: str = "results") -> Outcome:
        from latentsync_ray.tune import main

        status = main([str(space), f"storage={tmp_path / store}", *arguments])
        output = capsys.readouterr().out
        print(output)  # shown if the test fails
        return Outcome(results_folder(output), tmp_path / store, status)

    return run
