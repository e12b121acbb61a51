"""A warm worker group: one Ray Train run, whose workers train order after order."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.state import list_actors, list_placement_groups
from ray.util.state.exception import RayStateApiException

from latentsync_ray.orders import GroupSetup
from latentsync_ray.search_config import WorkersConfig

logger = logging.getLogger(__name__)

MAX_RESTARTS = 3
"""Restarts of its workers that Ray Train makes in one group's life; then the engine starts a new group."""
_GONE_SECONDS = 10.0
"""So long at most it takes a controller to end after its engine."""
_MOST = 10_000
"""Entries that Ray's state API lists at most."""


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
                resources_per_worker=_resources(setup.workers),
            ),
            run_config=RunConfig(
                name=name, storage_path=setup.results, failure_config=FailureConfig(max_failures=MAX_RESTARTS)
            ),
        ).fit()
    except Exception as exception:  # whatever it is, those who wait are told
        lines = str(exception).strip().splitlines() or [type(exception).__name__]
        return f"{type(exception).__name__}: {lines[-1]}"
    return None


def empty_places(workers: WorkersConfig) -> set[str]:
    """Ids of this job's placement groups that are reserved for workers and have none in them.

    Ray Train has a process that removes the placement group of a controller which is killed, but only tells it of
    those whose workers are up (ray/train/v2/_internal/callbacks/placement_group_callback.py). The others stay
    reserved as long as the job lasts.

    Raises:
        RayStateApiException: The cluster has no dashboard to ask.
    """
    job = ("job_id", "=", ray.get_runtime_context().get_job_id())
    alive = [job, ("class_name", "=", "RayTrainWorker"), ("state", "!=", "DEAD")]
    taken = {actor.placement_group_id for actor in list_actors(filters=alive, detail=True, limit=_MOST)}
    created = [("creator_job_id", *job[1:]), ("state", "=", "CREATED")]
    places = list_placement_groups(filters=created, detail=True, limit=_MOST)
    return {place.placement_group_id for place in places if _is_for_workers(place, workers)} - taken


def remove_places(places: Iterable[str]) -> None:
    """Gives back what placement groups have reserved."""
    for place in places:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(place))))


def remove_all_places(workers: WorkersConfig) -> None:
    """Gives back what groups have reserved that were still being started when their engine ended.

    Without Ray's dashboard it is not known what they have; then it stays reserved until this process ends.
    """
    job = ("job_id", "=", ray.get_runtime_context().get_job_id())
    alive = [job, ("class_name", "=", "TrainController"), ("state", "!=", "DEAD")]
    end = time.monotonic() + _GONE_SECONDS
    try:
        while list_actors(filters=alive) and time.monotonic() < end:
            time.sleep(0.1)
        places = list_placement_groups(filters=[("creator_job_id", *job[1:])], detail=True, limit=_MOST)
    except RayStateApiException as error:
        logger.info("what groups have reserved is not given back before this process ends: %s", error)
        return
    remove_places(
        place.placement_group_id for place in places if place.state != "REMOVED" and _is_for_workers(place, workers)
    )


def _is_for_workers(place: Any, workers: WorkersConfig) -> bool:
    """Whether a placement group is for workers, not for trials."""
    asked = {name: float(amount) for name, amount in _resources(workers).items() if amount}
    return all(bundle["unit_resources"] == asked for bundle in place.bundles)


def _resources(workers: WorkersConfig) -> dict[str, float]:
    """What each worker takes."""
    return {"CPU": workers.num_cpus} | ({"GPU": 1} if workers.use_gpu else {})


def _train_loop(config: dict[str, Any]) -> None:
    # Imported where it runs: the engine and Ray Train's controller start sooner without the networks' libraries.
    from latentsync_ray.worker import train_loop

    train_loop(config)
