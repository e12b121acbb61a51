"""What a new Ray has changed of all that is used beyond its public API: each assertion names one thing."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import ray
from ray._common.constants import HEAD_NODE_RESOURCE_NAME
from ray._private import ray_constants
from ray._private.node import Node
from ray.dashboard import utils
from ray.train.v2._internal import constants
from ray.train.v2._internal.callbacks import placement_group_callback
from ray.train.v2._internal.execution.controller import controller, placement_group_cleaner
from ray.train.v2._internal.execution.worker_group import worker
from ray.util.placement_group import PlacementGroup
from ray.util.state import common, list_actors, list_placement_groups

from latentsync_ray.cluster import ray_internals


def test_the_resource_of_the_head_node_is_called_so() -> None:
    assert HEAD_NODE_RESOURCE_NAME == ray_internals.HEAD_NODE


def test_ray_train_has_actors_of_these_classes() -> None:
    assert worker.RayTrainWorker.__name__ == ray_internals.WORKER
    assert controller.TrainController.__name__ == ray_internals.CONTROLLER
    cleaner = placement_group_cleaner.PlacementGroupCleaner
    assert getattr(cleaner, "__name__", "") == ray_internals.CLEANER
    assert ray_internals.CLEANER in inspect.getsource(placement_group_callback)


def test_ray_reads_these_variables() -> None:
    assert constants.ENABLE_PREEMPTION_WATCHER_ENV_VAR == ray_internals.PREEMPTION_WATCHER
    assert ray_constants.RAY_API_SERVER_ADDRESS_ENVIRONMENT_VARIABLE == ray_internals.API_SERVER
    asked = inspect.getsource(utils.get_address_for_submission_client)
    assert "RAY_API_SERVER_ADDRESS_ENVIRONMENT_VARIABLE" in asked


@pytest.mark.parametrize(
    ("state", "fields"),
    [
        (common.ActorState, {"class_name", "job_id", "node_id", "pid", "placement_group_id", "state"}),
        (common.PlacementGroupState, {"bundles", "creator_job_id", "placement_group_id", "state"}),
    ],
)
def test_the_state_api_tells(state: type, fields: set[str]) -> None:
    assert fields <= {field.name for field in dataclasses.fields(state)}


def test_the_state_api_lists_with_these_arguments() -> None:
    for function in (list_actors, list_placement_groups):
        assert {"filters", "detail", "limit"} <= inspect.signature(function).parameters.keys()


def test_a_placement_group_can_be_made_from_its_id_alone() -> None:
    place = ray.PlacementGroupID(bytes(ray.PlacementGroupID.size()))
    assert PlacementGroup(place).id == place


def test_ray_knows_whether_this_process_has_started_the_cluster() -> None:
    assert hasattr(ray._private.worker, "_global_node")
    assert callable(Node.is_head)
