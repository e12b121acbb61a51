"""What a new Ray has changed of all that is used beyond its public API: each assertion names one thing."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from types import SimpleNamespace

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
from ray.tune import Checkpoint
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, HyperBandScheduler, PopulationBasedTraining
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


def test_ray_says_so_of_a_process_that_was_lost(tmp_path: Path) -> None:
    said = (
        str(ray.exceptions.ActorDiedError()),
        str(ray.exceptions.ActorUnavailableError("socket closed", b"0" * 16)),
    )
    assert all(text in line for text, line in zip(ray_internals._LOST_ACTOR, said, strict=True))
    lost = Trial("trial", stub=True, storage=None)
    assert ray_internals.trial_error_lines(lost) == ["unknown error"]
    lost.run_metadata.error_filename = "error.txt"
    assert {"error_filename", "num_failures", "checkpoint_manager"} <= vars(lost.run_metadata).keys()
    assert isinstance(inspect.getattr_static(Trial, "error_file"), property)


def test_ray_tune_takes_a_checkpoint_from_its_manager() -> None:
    trial = Trial("trial", stub=True)
    checkpoint = Checkpoint("/nowhere")
    ray_internals.set_checkpoint(trial, checkpoint, {"global_step": 4})
    assert trial.checkpoint == checkpoint
    assert list(inspect.signature(TuneController._schedule_trial_save).parameters)[1:] == ["trial", "result"]


def test_asha_keeps_scores_by_rung() -> None:
    asha = ASHAScheduler("step", "loss", "min", max_t=8, grace_period=4, reduction_factor=2)
    assert ray_internals.milestones(asha) == [8, 4]
    ray_internals.set_milestones(asha, [4, 6, 8])
    trials = [Trial("trial", stub=True) for _ in range(2)]
    for trial in trials:
        asha.on_trial_add(None, trial)
        asha.on_trial_result(None, trial, {"step": 4, "loss": 1.0})
    assert ray_internals.milestones(asha) == [8, 6, 4]
    rungs = asha._trial_info[trials[1].trial_id]._rungs
    assert {trial.trial_id for trial in trials} in [set(scores) for _, scores in rungs]
    ray_internals.forget_scores(asha, trials[0].trial_id)
    assert set().union(*(scores for _, scores in rungs)) == {trials[1].trial_id}
    assert set(asha._trial_info) == {trials[1].trial_id}


def test_hyperband_marks_a_bracket_that_it_processes() -> None:
    names = ["self", "tune_controller", "bracket"]
    assert list(inspect.signature(HyperBandScheduler._process_bracket).parameters) == names
    assert "bracket.is_being_processed = True" in inspect.getsource(HyperBandScheduler._process_bracket)
    assert "not bracket.is_being_processed" in inspect.getsource(HyperBandScheduler.on_trial_remove)


def test_population_based_training_keeps_and_compares_trials_so() -> None:
    class Population(ray_internals.OpenPopulation, PopulationBasedTraining):
        """What the mixin is for."""

    scheduler = Population("step", "loss", "min", perturbation_interval=4, hyperparam_mutations={"lr": [1, 2]})
    trial = Trial("trial", stub=True, config={"lr": 1})
    scheduler.on_trial_add(SimpleNamespace(search_alg=None), trial)
    assert not scheduler.notes_result(trial, {"step": 2, "loss": 3.0})
    assert scheduler.notes_result(trial, {"step": 4, "loss": 3.0})
    state = scheduler.state_of(trial)
    assert (state.last_score, state.last_perturbation_time, state.last_train_time) == (-3.0, 4, 4)
    assert state.last_checkpoint is None
    called = inspect.getsource(PopulationBasedTraining._checkpoint_or_exploit)
    assert "self._exploit(tune_controller, trial, trial_to_clone)" in called
    assert "tune_controller._schedule_trial_save(" in called
