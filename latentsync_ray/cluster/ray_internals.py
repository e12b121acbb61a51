"""All that is used of Ray beyond its public API: private modules, names of its processes, and variables it reads.

A new Ray may change any of it; tests/unit/cluster/test_ray_internals.py says what.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
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
_LOST_ACTOR = ("The actor died unexpectedly", "The task may or may not have been executed on the actor")
"""How Ray tells of a process that was lost, or whose node was; one whose own code failed died of an error."""
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


# Ray Tune: its trials, and what its schedulers keep


def trial_error_lines(trial: Any) -> list[str]:
    """What Ray Tune has written of a trial's failures; its own reader looks where it copies them to later."""
    noted = trial.run_metadata.error_filename is not None
    text = Path(trial.error_file).read_text(encoding="utf-8") if noted else ""
    return text.strip().splitlines() or ["unknown error"]


def was_lost(trial: Any) -> bool:
    """Whether a trial has failed because its process was lost."""
    return any(text in line for line in trial_error_lines(trial) for text in _LOST_ACTOR)


def forgive_failures(trial: Any) -> None:
    """Has Ray Tune count a trial's failures from zero again."""
    trial.run_metadata.num_failures = 0


def set_checkpoint(trial: Any, checkpoint: Any, result: Mapping[str, object]) -> None:
    """Has a paused trial go on from a checkpoint, as Ray Tune's own schedulers do."""
    from ray.train._internal.session import _TrainingResult  # takes a second, and only some schedulers need it

    trial.run_metadata.checkpoint_manager._latest_checkpoint_result = _TrainingResult(checkpoint, dict(result))


def schedule_save(tune_controller: Any, trial: Any, result: Mapping[str, object]) -> Any:
    """Has a trial save a checkpoint. Returns what a population-based scheduler keeps of it until it is there."""
    return tune_controller._schedule_trial_save(trial, result=result)


def forget_scores(asha: Any, trial_id: str) -> None:
    """Removes a trial from all rungs of an `ASHAScheduler`, and from the trials that it follows."""
    for _, scores in asha._trial_info.pop(trial_id)._rungs:
        scores.pop(trial_id, None)


def milestones(asha: Any) -> list[float]:
    """Where the rungs of an `ASHAScheduler` with one bracket are."""
    return [milestone for milestone, _ in asha._brackets[0]._rungs]


def set_milestones(asha: Any, rungs: Iterable[float]) -> None:
    """Moves the rungs of an `ASHAScheduler` with one bracket, before it has seen a trial.

    Args:
        asha: The scheduler.
        rungs: Their milestones, lowest first.
    """
    asha._brackets[0]._rungs = [(rung, {}) for rung in reversed(list(rungs))]


class OpenBrackets:
    """Has a `HyperBandScheduler`, the next class in line, look at a bracket as often as there is something to decide.

    Ray Tune marks a bracket as being processed, so that the trials that it stops do not process it again, and never
    takes the mark away. And it halves once where a report passes several milestones: if all survivors are beyond the
    next one they stay paused, and none of them reports again.
    """

    def _process_bracket(self, tune_controller: Any, bracket: Any) -> str:
        process, stop = super()._process_bracket, self.STOP  # type: ignore[misc, attr-defined]
        actions = [str(process(tune_controller, bracket))]
        while bracket._halves > 0 and bracket.current_trials() and bracket.cur_iter_done():
            actions.append(str(process(tune_controller, bracket)))
        bracket.is_being_processed = False
        return stop if stop in actions else actions[-1]


class OpenPopulation:
    """Shows the inner parts of `PopulationBasedTraining` and `PB2`, the next class in line."""

    def exploited(self, trial: Any, source: Any) -> None:
        """Is called after a trial was made a clone of another one."""

    def state_of(self, trial: Any) -> Any:
        """What is kept of a trial: `last_checkpoint`, `last_train_time`, `last_perturbation_time`, `last_score`."""
        return self._trial_state[trial]  # type: ignore[attr-defined]

    def notes_result(self, trial: Any, result: Mapping[str, object]) -> bool:
        """Keeps the score of a result where a trial is due to be compared. Returns whether it is."""
        state, time = self.state_of(trial), result[self._time_attr]  # type: ignore[attr-defined]
        if time - state.last_perturbation_time < self._perturbation_interval:  # type: ignore[attr-defined]
            return False
        self._save_trial_state(state, time, result, trial)  # type: ignore[attr-defined]
        state.last_perturbation_time = time
        return True

    def _exploit(self, tune_controller: Any, trial: Any, trial_to_clone: Any) -> None:
        super()._exploit(tune_controller, trial, trial_to_clone)  # type: ignore[misc]
        self.exploited(trial, trial_to_clone)
