"""Reports a search to experiment trackers, by Ray Tune's own callbacks for them.

A run is named by its values, such as `at400_lr2e-4`. What trials share is not theirs: the points of stage one are a
run of their own, the trunk, and a trial's run begins with stage two.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.logger import LoggerCallback

from latentsync_ray.config.errors import UserError
from latentsync_ray.config.plain import Parameters
from latentsync_ray.config.recipe import FIRST_STAGE
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.report.names import values_name
from latentsync_ray.report.trials import Boundary
from latentsync_ray.search.reported import Reported, TuneResult
from latentsync_ray.search.trial import parameters, trial_number

_SEARCH_TAG = "latentsync_ray.search"
"""Tag of MLflow's runs that names their search."""


def check_trackers(search: SearchConfig) -> None:
    """Refuses a search whose trackers are not installed.

    Raises:
        UserError: One is not.
    """
    for name in ("mlflow", "wandb"):
        if getattr(search.trackers, name) is not None and find_spec(name) is None:
            remedy = f"pip install 'latentsync_ray[{name}]', or leave it out"
            raise UserError(f"trackers.{name}: needs the package {name}, which is not installed; {remedy}")


def make_trackers(search: SearchConfig, folder: str) -> list[tune.Callback]:
    """The callbacks that a search asks for.

    Args:
        search: What is asked.
        folder: The search's folder, which names it among others.
    """
    name, made = Path(folder).name, list[tune.Callback]()
    mlflow, wandb = search.trackers.mlflow, search.trackers.wandb
    if mlflow is not None:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        experiment, tags = mlflow.experiment or search.name, {_SEARCH_TAG: name}
        logger = MLflowLoggerCallback(mlflow.tracking_uri, experiment_name=experiment, tags=tags)
        made.append(Tracker("mlflow", name, logger, lambda: _forget_runs(logger, name)))
    if wandb is not None:
        from ray.air.integrations.wandb import WandbLoggerCallback

        place = os.environ.get("WANDB_DIR", str(Path.cwd()))
        settings = {"entity": wandb.entity, "mode": wandb.mode, "dir": place}
        made.append(Tracker("wandb", name, WandbLoggerCallback(wandb.project, name, **settings)))
    return made


def _forget_runs(logger: Any, name: str) -> None:
    """Deletes MLflow's runs of earlier calls of a search, which reports everything again; W&B replaces its own."""
    from mlflow import MlflowClient

    client, experiment = MlflowClient(), logger.mlflow_util.experiment_id
    for run in client.search_runs([experiment], f"tags.`{_SEARCH_TAG}` = '{name}'", max_results=10_000):
        client.delete_run(run.info.run_id)


@dataclass(eq=False)
class Run:
    """What Ray Tune's callbacks take for a trial."""

    name: str
    """What the tracker shows."""
    trial_id: str
    """Its own, the same in every call of the search."""
    experiment_dir_name: str
    """The search's name."""
    local_path: str
    """Folder for files of a callback's process."""
    config: dict[str, Any] = field(default_factory=dict)
    """Values of the search."""
    last: Boundary | None = None
    """What was reported last."""

    def __str__(self) -> str:
        return self.name


class Tracker(tune.Callback):  # type: ignore[misc]
    """Has one of Ray Tune's callbacks log a run for each trial, and one for each trunk.

    Args:
        tracker: Its name in the settings.
        search: Names the search among others.
        logger: Ray Tune's callback.
        begin: Is called once the callback is connected.
    """

    def __init__(self, tracker: str, search: str, logger: LoggerCallback, begin: Callable[[], None] = lambda: None):
        self._tracker, self._search, self._logger, self._begin = tracker, search, logger, begin
        self._runs: dict[str, Run] = {}
        """Those that have begun, by id."""
        self._trunks: dict[str, Run] = {}
        """Key of a segment of stage one -> the run that has its point."""
        self._passed: dict[int, Boundary] = {}
        """Trial -> where it was in stage one."""

    def __getstate__(self) -> dict[str, object]:
        """Nothing: Ray Tune writes a copy into files that nobody reads."""
        return {}

    def setup(self, *arguments: Any, **info: Any) -> None:
        """Connects to the tracker.

        Raises:
            UserError: It cannot be reached, or knows no user.
        """
        try:
            self._logger.setup()
            self._begin()
        except Exception as error:  # whatever it is, each library has its own
            reason = " ".join(str(error).split())
            remedy = "mend that, or leave the tracker out"
            raise UserError(f"trackers.{self._tracker}: cannot be used ({reason}); {remedy}") from error

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: TuneResult, **info: Any) -> None:
        """A point of the trunk, if it is new, or of the trial's own run."""
        reached = Reported.from_result(result).boundary
        if reached is None:
            return
        if reached.stage != FIRST_STAGE:
            self._log(self._run_of(trial), reached)
            return
        self._passed[trial_number(trial.trial_id, trial.config)] = reached
        if reached.key not in self._trunks:
            self._trunks[reached.key] = run = self._trunk_after(reached, trial.local_path)
            self._log(run, reached)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has ended, by itself or by the scheduler's decision."""
        self._end(trial, failed=False)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has failed for good."""
        self._end(trial, failed=True)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Trunks end, and what has not ended by itself."""
        for run in list(self._runs.values()):
            self._close(run, failed=False)
        self._logger.on_experiment_end(trials=[], **info)

    def _run_of(self, trial: Any) -> Run:
        number, config = trial_number(trial.trial_id, trial.config), parameters(trial.config)
        return self._started(f"trial-{number:04d}", values_name(config), trial.local_path, config)

    def _trunk_after(self, reached: Boundary, place: str) -> Run:
        """The run of the trunk that a point of stage one belongs to; where trunks part, the later one is another."""
        before = self._trunks.get(reached.parent)
        if before is not None and before.last is not None and before.last.key == reached.parent:
            return before
        number = len({run.trial_id for run in self._trunks.values()}) + 1
        name = "trunk" if number == 1 else f"trunk{number}"
        return self._started(name, name, place, {})

    def _started(self, name: str, shown: str, place: str, config: Parameters) -> Run:
        run_id = f"{self._search}-{name}"
        if run_id not in self._runs:
            run = self._runs[run_id] = Run(shown, run_id, self._search, place, dict(config))
            self._logger.log_trial_start(run)
        return self._runs[run_id]

    def _log(self, run: Run, reached: Boundary) -> None:
        run.last = reached
        step = reached.global_step
        self._logger.log_trial_result(step, run, _result(reached.metrics, step))

    def _end(self, trial: Any, failed: bool) -> None:
        """Ends a trial's run; one that has only been in the trunk has its last point as its only one."""
        number = trial_number(trial.trial_id, trial.config)
        passed = self._passed.pop(number, None)
        run = self._run_of(trial)
        if run.last is None and passed is not None:
            self._log(run, passed)
        self._close(run, failed)

    def _close(self, run: Run, failed: bool) -> None:
        del self._runs[run.trial_id]
        self._logger.log_trial_end(run, failed)


def _result(metrics: Mapping[str, float], step: int) -> dict[str, object]:
    """What Ray Tune's callbacks take for a result; they read the step under either name."""
    return {**metrics, "training_iteration": step, "timesteps_total": step}
