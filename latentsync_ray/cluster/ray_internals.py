"""All that is used of Ray beyond its public API: private modules, names of its processes, and variables it reads.

A new Ray may change any of it; tests/unit/cluster/test_ray_internals.py says what.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.state import list_actors, list_placement_groups
from ray.util.state.common import ActorState, PlacementGroupState
from ray.util.state.exception import RayStateApiException

HEAD_NODE = "node:__internal_head__"
"""Resource that only Ray's head node has, for what has to run there."""
WORKER, CONTROLLER, CLEANER = "RayTrainWorker", "TrainController", "PlacementGroupCleaner"
"""Classes of Ray Train's actors: a worker, what is in charge of a group, and what looks after its placement group."""
PREEMPTION_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
"""Variable by which Ray Train's controllers are told to start a process that watches for notices of preemption."""
API_SERVER = "RAY_API_SERVER_ADDRESS"
"""Variable by which Ray's state API is told which cluster to ask."""
_MOST = 10_000
"""Entries that Ray's state API lists at most."""


class NoDashboardError(Exception):
    """The cluster has no dashboard, of which Ray asks who has reserved what."""


def cluster_started_here() -> bool:
    """Whether this process has started the cluster that it is connected to; Ray has no public way to tell."""
    return bool(ray._private.worker._global_node.is_head())


def living_actors(class_name: str) -> list[ActorState]:
    """This job's actors of a class that are or will be alive.

    Raises:
        NoDashboardError: It is not known.
    """
    job = ("job_id", "=", ray.get_runtime_context().get_job_id())
    return _listed(list_actors, [job, ("class_name", "=", class_name), ("state", "!=", "DEAD")])


def placement_groups(resources: dict[str, float]) -> list[PlacementGroupState]:
    """This job's placement groups whose bundles all ask for exactly these resources.

    Raises:
        NoDashboardError: It is not known.
    """
    job = ("creator_job_id", "=", ray.get_runtime_context().get_job_id())
    places = _listed(list_placement_groups, [job, ("state", "!=", "REMOVED")])
    return [place for place in places if all(bundle["unit_resources"] == resources for bundle in place.bundles)]


def remove_placement_groups(ids: Iterable[str]) -> None:
    """Gives back what placement groups have reserved, by their ids in hexadecimal."""
    for place in ids:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(place))))


def _listed(list_what: Callable[..., list[Any]], filters: list[tuple[str, str, str]]) -> list[Any]:
    """Asks Ray's state API about the cluster of this process."""
    try:
        with _this_cluster():
            return list_what(filters=filters, detail=True, limit=_MOST)
    except (RayStateApiException, ValueError) as error:
        raise NoDashboardError(str(error)) from error


@contextlib.contextmanager
def _this_cluster() -> Iterator[None]:
    """Has Ray's state API ask the cluster of this process, since it prefers RAY_ADDRESS to any argument.

    That may say `local`, which among several clusters on a machine names none
    (ray/dashboard/utils.py, get_address_for_submission_client).
    """
    before = os.environ.get(API_SERVER)
    os.environ[API_SERVER] = ray.get_runtime_context().gcs_address
    try:
        yield
    finally:
        if before is None:
            del os.environ[API_SERVER]
        else:
            os.environ[API_SERVER] = before
