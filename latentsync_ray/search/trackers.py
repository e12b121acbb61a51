"""Reports a search to experiment trackers, by Ray Tune's own callbacks for them.

A run is named by its values, such as `at400_lr2e-4`. What trials share is not theirs: the points of stage one are a
run of their own, the trunk, and a trial's run begins with stage two.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from latentsync_ray.config.errors import UserError
from latentsync_ray.config.plain import Settings
from latentsync_ray.config.recipe import FIRST_STAGE
from latentsync_ray.config.search import SEEDS, SearchConfig
from latentsync_ray.config.trackers import MLflowConfig, WandbConfig
from latentsync_ray.core.baselines import BASELINES, Role
from latentsync_ray.core.hashing import digest
from latentsync_ray.report.names import name_of, values_name
from latentsync_ray.report.trials import Boundary, TrialResult, TrialStatus
from latentsync_ray.store import Store

if TYPE_CHECKING:
    from ray.tune.logger import LoggerCallback  # takes seconds, and the command has said nothing yet

_SEARCH_TAG = "latentsync_ray.search"
"""Tag of MLflow's runs that names their search."""
_NAMES = {
    Role.SEARCHED: "",
    Role.NEVER: "never",
    Role.FIRST: "first",
    Role.SHIPPED: "shipped",
    Role.CONFIRMING: "confirm",
}
"""What the name of a run says of a trial's role."""
_ANSWER_SECONDS = 10
"""How long a server may take to answer before anything is trained."""
_CLOSE_SECONDS, _BREAK_OFF_SECONDS = 600, 3
"""How long the end of a search waits for what is not reported yet; the second where the search is broken off."""


def check_trackers(search: SearchConfig) -> None:
    """Refuses a search whose trackers are not installed, or do not answer.

    Raises:
        UserError: One is not, or does not.
    """
    mlflow, wandb = search.trackers.mlflow, search.trackers.wandb
    for name, tracker in (("mlflow", mlflow), ("wandb", wandb)):
        if tracker is not None and find_spec(name) is None:
            remedy = f"pip install 'latentsync_ray[{name}]', or leave it out"
            raise UserError(f"trackers.{name}: needs the package {name}, which is not installed; {remedy}")
    if mlflow is not None:
        _connect_mlflow(mlflow, search.name, "")
    if wandb is not None:
        _connect_wandb(wandb, search.name)


def make_trackers(search: SearchConfig, store: Store, folder: str) -> list[Tracker]:
    """Connects the trackers that a search asks for; what earlier calls of the search have reported is forgotten.

    Args:
        search: What is asked.
        store: Where the search is.
        folder: The search's folder below the store's root, which names it among others.

    Raises:
        UserError: One cannot be reached, or knows no user.
    """
    name = Path(folder).name
    identity = digest([store.uri_of(folder), store.identity()])[:12]
    made, mlflow, wandb = list[Tracker](), search.trackers.mlflow, search.trackers.wandb
    if mlflow is not None:
        tag = f"{name}-{identity}"
        logger = _connect_mlflow(mlflow, search.name, tag)
        with _told("mlflow"):
            _forget_runs(logger.mlflow_util.experiment_id, tag)
        made.append(Tracker("mlflow", name, identity, logger))
    if wandb is not None:
        logger = _connect_wandb(wandb, name)
        _forget_offline_runs(identity)
        made.append(Tracker("wandb", name, identity, logger))
    return made


def _connect_mlflow(mlflow: MLflowConfig, search: str, tag: str) -> Any:
    patience = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(_ANSWER_SECONDS)}
    with _told("mlflow"), _environment(patience | os.environ):
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        experiment = mlflow.experiment or search
        logger = MLflowLoggerCallback(mlflow.tracking_uri, experiment_name=experiment, tags={_SEARCH_TAG: tag})
        logger.setup()
        return logger


def _connect_wandb(wandb: WandbConfig, group: str) -> Any:
    mode = wandb.mode or os.environ.get("WANDB_MODE", "online")
    # Ray's callback asks for a key, unless the environment has another mode than online.
    with _told("wandb"), _environment({"WANDB_MODE": mode}):
        from ray.air.integrations.wandb import WandbLoggerCallback
        from wandb import Api

        quiet = {"silent": True, "console": "off"}  # its processes write to the search's console
        settings = {"entity": wandb.entity, "mode": mode, "dir": str(_wandb_folder()), "settings": quiet}
        logger = WandbLoggerCallback(wandb.project, group, upload_timeout=_CLOSE_SECONDS, **settings)
        logger.setup()
        if mode == "online":
            _ = Api(timeout=_ANSWER_SECONDS).viewer
        return logger


def _wandb_folder() -> Path:
    """Where W&B writes files; it is made, since processes of Ray's callback begin there."""
    folder = Path(os.environ.get("WANDB_DIR", ".")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def _told(tracker: str) -> Iterator[None]:
    """Tells what fails of a tracker in one line.

    Raises:
        UserError: Something has failed.
    """
    try:
        yield
    except Exception as error:  # each library has its own
        remedy = "mend that, or leave the tracker out"
        raise UserError(f"trackers.{tracker}: cannot be used ({_in_one_line(error)}); {remedy}") from error


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets variables of the environment for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _forget_runs(experiment: str, tag: str) -> None:
    """Deletes MLflow's runs of earlier calls of a search, which reports everything again."""
    from mlflow import MlflowClient

    client = MlflowClient()
    while runs := client.search_runs([experiment], f"tags.`{_SEARCH_TAG}` = '{tag}'"):
        for run in runs:
            client.delete_run(run.info.run_id)


def _forget_offline_runs(identity: str) -> None:
    """Removes W&B's offline files of earlier calls of a search; a run that was sent is replaced by that of its id."""
    for folder in _wandb_folder().glob(f"wandb/offline-run-*-{identity}-*"):
        shutil.rmtree(folder)


@dataclass(eq=False)
class Run:
    """What Ray Tune's callbacks take for a trial."""

    name: str
    """What the tracker shows."""
    trial_id: str
    """Its own, the same in every call of the search."""
    experiment_dir_name: str
    """The search's name."""
    config: Settings
    """Values of the search."""
    local_path: str = field(default_factory=lambda: str(Path.cwd()))
    """Folder in which a process of W&B's callback begins."""
    last: Boundary | None = None
    """What was reported last."""
    is_open: bool = False
    """Whether more may come."""

    def __str__(self) -> str:
        return self.name


class Tracker:
    """Has one of Ray Tune's callbacks log a run for each trial, and one for each trunk.

    It works in a thread of its own, since a tracker that is slow or away must not keep the search from going on.

    Args:
        tracker: Its name in the settings.
        search: Name of the search.
        identity: Tells the search from all others, wherever they are stored.
        logger: Ray Tune's callback, connected.
    """

    def __init__(self, tracker: str, search: str, identity: str, logger: LoggerCallback):
        self._tracker, self._search, self._identity, self._logger = tracker, search, identity, logger
        self._news: SimpleQueue[TrialResult | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"tracker-{tracker}", daemon=True)
        self._is_over = False
        """Whether nobody waits for the thread any more."""
        self._runs: dict[str, Run] = {}
        """By name; a trunk's is `trunk`, `trunk2` and so on."""
        self._trunks: dict[str, Run] = {}
        """Key of a segment of stage one -> the run that has its point."""
        self._logged: set[tuple[int, str]] = set()
        """Number of a trial, and the key of a segment that it has reported."""

    def __enter__(self) -> Tracker:
        """Begins to report."""
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Waits for what is not reported yet, if the search has not been broken off."""
        self._news.put(None)
        self._thread.join(_CLOSE_SECONDS if kind is None else _BREAK_OFF_SECONDS)
        if kind is None and self._thread.is_alive():
            self._note(f"not everything was reported within {_CLOSE_SECONDS} s")
        self._is_over = True

    def follow(self, trial: TrialResult) -> None:
        """Takes note of what is known of a trial now, and reports it later."""
        self._news.put(trial)

    def _work(self) -> None:
        try:
            while (trial := self._news.get()) is not None:
                self._report(trial)
            for run in self._runs.values():
                self._close(run, failed=False)
            self._logger.on_experiment_end(trials=[])
        except Exception as error:
            if not self._is_over:
                self._note(f"no longer reported to ({_in_one_line(error)}); the search goes on")

    def _note(self, text: str) -> None:
        print(f"note: trackers.{self._tracker}: {text}", flush=True)

    def _report(self, trial: TrialResult) -> None:
        """A point of the trunk, if it is new, or of the trial's own run; and the trial's end."""
        last = trial.last
        if last is not None and (trial.number, last.key) not in self._logged:
            self._logged.add((trial.number, last.key))
            if last.stage != FIRST_STAGE:
                self._log(self._run_of(trial), last)
            elif last.key not in self._trunks:
                self._trunks[last.key] = run = self._trunk_after(last)
                self._log(run, last)
        if trial.status != TrialStatus.RUNNING:
            run = self._runs.get(name_of(trial.number)) or self._run_of(trial)
            if run.last is None and last is not None:
                self._log(run, last)  # it has only been in the trunk, and has its last point as its only one
            self._close(run, failed=trial.status in (TrialStatus.FAILED, TrialStatus.DIVERGED))

    def _run_of(self, trial: TrialResult) -> Run:
        return self._opened(name_of(trial.number), _shown_name(trial), {**trial.config, "role": str(trial.role)})

    def _trunk_after(self, reached: Boundary) -> Run:
        """The run of the trunk that a point of stage one belongs to; where trunks part, the later one is another."""
        before = self._trunks.get(reached.parent)
        if before is not None and before.last is not None and before.last.key == reached.parent:
            return before
        number = len({run.trial_id for run in self._trunks.values()}) + 1
        name = "trunk" if number == 1 else f"trunk{number}"
        return self._opened(name, name, {})

    def _opened(self, name: str, shown: str, values: Settings) -> Run:
        run = self._runs.setdefault(name, Run(shown, f"{self._identity}-{name}", self._search, values))
        if not run.is_open:
            run.is_open = True
            self._logger.log_trial_start(run)
        return run

    def _log(self, run: Run, reached: Boundary) -> None:
        run.last = reached
        step = reached.global_step
        # Ray Tune's callbacks read the step under either name.
        result = {**reached.metrics, "training_iteration": step, "timesteps_total": step}
        self._logger.log_trial_result(step, run, result)

    def _close(self, run: Run, failed: bool) -> None:
        if run.is_open:
            run.is_open = False
            self._logger.log_trial_end(run, failed)


def _shown_name(trial: TrialResult) -> str:
    """What trackers call a trial: `at400_lr2e-4`, `never`, `confirm_at400_lr2e-4_seed1`."""
    named = trial.config
    if trial.role in BASELINES:  # their other values are those of their role
        named = {name: value for name, value in named.items() if name in SEEDS}
    parts = (_NAMES[trial.role], values_name(named) if named or not _NAMES[trial.role] else "")
    return "_".join(part for part in parts if part)
