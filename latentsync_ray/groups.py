"""A warm worker group: one Ray Train run, whose workers train order after order."""

from __future__ import annotations

import os
from typing import Any

from latentsync_ray.orders import GroupSetup

MAX_RESTARTS = 3
"""Restarts of its workers that Ray Train makes in one group's life; then the engine starts a new group."""


def run_group(name: str, num_workers: int, setup: GroupSetup) -> str | None:
    """Runs a group until the engine has no more orders for it.

    Args:
        name: The group's, by which its workers ask the engine for orders.
        num_workers: How many processes it has.
        setup: What all groups are started with.

    Returns:
        What ended it too early, one line, or None. Nothing is raised: an exception would be lost in a thread.
    """
    # Ray imports this module wherever the engine is called from, and trials need no torch.
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    # Ray Train hands it to its controller, which starts a process for each group that watches for notices.
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "1" if setup.preemptible else "0"
    try:
        TorchTrainer(
            _train_loop,
            train_loop_config={"setup": setup, "group": name},
            scaling_config=ScalingConfig(
                num_workers=num_workers,
                use_gpu=setup.workers.use_gpu,
                resources_per_worker={"CPU": setup.workers.num_cpus} | ({"GPU": 1} if setup.workers.use_gpu else {}),
            ),
            run_config=RunConfig(
                name=name, storage_path=setup.results, failure_config=FailureConfig(max_failures=MAX_RESTARTS)
            ),
        ).fit()
    except Exception as exception:  # whatever it is, those who wait are told
        lines = str(exception).strip().splitlines() or [type(exception).__name__]
        return f"{type(exception).__name__}: {lines[-1]}"
    return None


def _train_loop(config: dict[str, Any]) -> None:
    # Imported where it runs: the engine and Ray Train's controller start sooner without the networks' libraries.
    from latentsync_ray.worker import train_loop

    train_loop(config)
