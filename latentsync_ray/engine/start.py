"""Starting the engine of a search as an actor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray

from latentsync_ray.cluster.ray_internals import HEAD_NODE
from latentsync_ray.config.search import WorkersConfig
from latentsync_ray.engine.engine import Engine
from latentsync_ray.engine.environment import environment
from latentsync_ray.engine.messages import EngineSetup

MAX_CALLS = 100_000
"""Calls that the engine has open at once; every trial that waits is one, and its workers must get through to it."""


@dataclass(frozen=True)
class StartedEngine:
    """An engine that runs."""

    actor: Any
    """Its handle."""
    name: str
    """By which other processes find it."""
    results: str
    """Folder or URI below which Ray may write its own files."""


def workers_environment(workers: WorkersConfig) -> dict[str, str]:
    """What a process has that takes what a worker takes; it waits for such a place if there is none yet."""
    place = ray.remote(num_cpus=workers.num_cpus, num_gpus=int(workers.use_gpu))
    found: dict[str, str] = ray.get(place(environment).remote())
    return found


def start_engine(setup: EngineSetup) -> Any:
    """Starts the engine of a search as a named actor, which Ray restarts whenever it is lost; the engine counts.

    It runs on the head node: Ray Train starts its controllers on the engine's node, which must not be one that comes
    and goes. A soft affinity for the node does not suffice: under load Ray has placed engines elsewhere.
    """
    options = {"name": setup.groups.engine, "num_cpus": 0, "resources": {HEAD_NODE: 0.001}}
    limits = {"max_restarts": -1, "max_task_retries": -1, "max_concurrency": MAX_CALLS}
    return ray.remote(Engine).options(**options, **limits).remote(setup)
