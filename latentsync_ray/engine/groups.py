"""A warm worker group: one Ray Train run, whose workers train order after order."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray.util.state import list_actors, list_placement_groups
from ray.util.state.exception import RayStateApiException

from latentsync_ray.config.search import WorkersConfig
from latentsync_ray.engine.messages import GroupSetup

logger = logging.getLogger(__name__)

MAX_RESTARTS = 3
"""Restarts of its workers that Ray Train makes in one group's life; then the engine starts a new group."""
_GONE_SECONDS = 10.0
"""So long at most it takes a controller to end after its engine."""
_MOST = 10_000
"""Entries that Ray's state API lists at most."""
_API_SERVER = "RAY_API_SERVER_ADDRESS"
"""Variable by which Ray's state API is told which cluster to ask."""


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


class NoDashboardError(Exception):
    """The cluster has no dashboard, of which Ray asks who has reserved what."""


def empty_places(workers: WorkersConfig) -> set[str]:
    """Ids of this job's placement groups that are reserved for workers and have none in them.

    Ray Train has a process that removes the placement group of a controller which is killed, but only tells it of
    those whose workers are up (ray/train/v2/_internal/callbacks/placement_group_callback.py). The others stay
    reserved as long as the job lasts.

    Raises:
        NoDashboardError: It is not known.
    """
    taken = {actor.placement_group_id for actor in _living("RayTrainWorker")}
    places = {place.placement_group_id for place in _places(workers) if place.state == "CREATED"}
    return places - taken


def remove_places(places: Iterable[str]) -> None:
    """Gives back what placement groups have reserved."""
    for place in places:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(place))))


def remove_what_is_left(workers: WorkersConfig) -> None:
    """Ends what groups have left behind that were still being started when their engine ended.

    That is the places that they had reserved, and Ray Train's detached process that looks after each group, which
    means to end when its controller is gone, but does so in a thread, where that has no effect
    (ray/train/v2/_internal/execution/controller/placement_group_cleaner.py). Without a dashboard, places stay until
    this process ends, and those processes for good.
    """
    end = time.monotonic() + _GONE_SECONDS
    try:
        while _living("TrainController") and time.monotonic() < end:
            time.sleep(0.1)
        remove_places(place.placement_group_id for place in _places(workers))
        while (cleaners := _living("PlacementGroupCleaner")) and time.monotonic() < end:
            for cleaner in cleaners:
                if cleaner.state == "ALIVE" and cleaner.pid:
                    on_its_node = NodeAffinitySchedulingStrategy(cleaner.node_id, soft=False)
                    ending = _end_process.options(scheduling_strategy=on_its_node).remote(cleaner.pid)
                    ray.get(ending, timeout=_GONE_SECONDS)
            time.sleep(0.1)
    except (NoDashboardError, RayError) as error:  # the search has its results all the same
        logger.warning("what groups have reserved is not given back before this process ends: %s", error)


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
def _end_process(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself
        os.kill(pid, signal.SIGKILL)


def _living(class_name: str) -> list[Any]:
    """This job's actors of a class that are or will be alive."""
    job = ("job_id", "=", ray.get_runtime_context().get_job_id())
    return _listed(list_actors, [job, ("class_name", "=", class_name), ("state", "!=", "DEAD")])


def _places(workers: WorkersConfig) -> list[Any]:
    """This job's placement groups for workers."""
    job = ("creator_job_id", "=", ray.get_runtime_context().get_job_id())
    places = _listed(list_placement_groups, [job, ("state", "!=", "REMOVED")])
    return [place for place in places if _is_for_workers(place, workers)]


def _listed(list_what: Callable[..., list[Any]], filters: list[tuple[str, str, str]]) -> list[Any]:
    """Asks Ray's state API about the cluster of this process."""
    try:
        with _this_cluster():
            return list_what(filters=filters, detail=True, limit=_MOST)
    except (RayStateApiException, ValueError) as error:
        raise NoDashboardError(str(error)) from error


@contextlib.contextmanager
def _this_cluster() -> Iterator[None]:
    """Has Ray's state API ask the cluster of this process, for it prefers RAY_ADDRESS to any argument.

    That may say `local`, which among several clusters on a machine names none
    (ray/dashboard/utils.py, get_address_for_submission_client).
    """
    before = os.environ.get(_API_SERVER)
    os.environ[_API_SERVER] = ray.get_runtime_context().gcs_address
    try:
        yield
    finally:
        if before is None:
            del os.environ[_API_SERVER]
        else:
            os.environ[_API_SERVER] = before


def _is_for_workers(place: Any, workers: WorkersConfig) -> bool:
    """Whether a placement group is for workers, not for trials."""
    asked = {name: float(amount) for name, amount in _resources(workers).items() if amount}
    return all(bundle["unit_resources"] == asked for bundle in place.bundles)


def _resources(workers: WorkersConfig) -> dict[str, float]:
    """What each worker takes."""
    return {"CPU": workers.num_cpus} | ({"GPU": 1} if workers.use_gpu else {})


def _train_loop(config: dict[str, Any]) -> None:
    # Imported where it runs: the engine and Ray Train's controller start sooner without the networks' libraries.
    from latentsync_ray.engine.worker import train_loop

    train_loop(config)
