"""A search from its settings to its results: the cluster, the engine, and Ray Tune's own search over them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from typing import Any

# Ray reads these when it is imported: progress, results and Ctrl-C are handled here.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # every segment is stored: nothing to save in haste
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# glibc would give memory back to the system after every step and fetch it again: a quarter of a small model's time.
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "4000000000")
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "4000000000")
os.environ.setdefault("MALLOC_TOP_PAD_", "67108864")
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # a failed trial reports none

import ray
from ray import tune

from latentsync_ray.config import Recipe, SearchConfig, UserError
from latentsync_ray.engine import EngineSetup, start_engine
from latentsync_ray.inputs import check_syncnet, ready_inputs
from latentsync_ray.journal import Journal
from latentsync_ray.live import LiveView
from latentsync_ray.orders import WorkerSetup
from latentsync_ray.report import NOTHING_DONE, SearchLog, read_finished, write_report
from latentsync_ray.schedulers import make_scheduler
from latentsync_ray.segment import Segment, digest, next_segment, root_key
from latentsync_ray.store import Store
from latentsync_ray.suggestions import domain, make_search_algorithm
from latentsync_ray.trial import Trial, TrialSetup, trial_number
from latentsync_ray.triallog import TrialLog
from latentsync_ray.worker import environment

MAX_TRIAL_RESTARTS = 3
"""How often a trial whose process was lost begins again; it finds what it had in the store."""


def run_search(search: SearchConfig, recipe: Recipe) -> int:
    """Runs a search, or goes on with it, and writes its results.

    Returns:
        0, or 1 if trials failed or all diverged.

    Raises:
        UserError: Something is wrong with what the user gave.
        KeyboardInterrupt: After Ctrl-C; what was trained is kept.
    """
    started = time.monotonic()
    store = Store(search.storage)
    recipe, fingerprints = ready_inputs(recipe)
    accuracy, warning = check_syncnet(store, recipe, fingerprints)
    if warning is not None:
        print(f"warning: {warning}", flush=True)
    folder = search_folder(search, recipe, fingerprints)
    journal = Journal(store, f"{folder}/decisions")
    for notice in journal.notices:
        print(f"note: {notice}", flush=True)
    finished = read_finished(store, folder)
    if finished is not None:
        print("this search is finished: nothing to train", flush=True)
        return _end(store, folder, search, recipe, finished, NOTHING_DONE, journal, accuracy, started)
    with cluster() as dashboard:
        _check_resources(search, recipe)
        log = SearchLog(store, folder)  # clears logs of before, so after all checks
        print(f"dashboard: {dashboard}", flush=True)
        with tempfile.TemporaryDirectory(prefix="latentsync_ray-", ignore_cleanup_errors=True) as scratch:
            # A cluster of several nodes needs a place for Ray's own files that all of them see.
            ray_files = scratch if len(ray.nodes()) == 1 else f"{store.uri}/{folder}/ray"
            engine_name = f"latentsync_ray-{uuid.uuid4().hex}"
            engine = start_engine(engine_name, _engine_setup(search, recipe, engine_name, ray_files))
            extra = {"environment": environment()} if search.environment == "strict" else {}
            setup = TrialSetup(engine_name, recipe, fingerprints, extra, search.share)
            _prefetch(engine, search, setup)
            try:
                with LiveView(engine, log, search, recipe):
                    _fit(_tuner(search, recipe, engine, setup, journal, log, ray_files))
                status = ray.get(engine.status.remote())
                ray.get(engine.stop.remote())
            finally:
                ray.kill(engine)  # whatever it has started goes with it
                log.close()
    return _end(store, folder, search, recipe, log.trials, status, journal, accuracy, started)


def _end(
    store: Store,
    folder: str,
    search: SearchConfig,
    recipe: Recipe,
    trials: dict[int, TrialLog],
    status: dict[str, Any],
    journal: Journal,
    accuracy: float | None,
    started: float,
) -> int:
    """Writes the report and says where it is. Returns the exit status."""
    wall_seconds = time.monotonic() - started
    succeeded = write_report(
        store, folder, search, recipe, trials, status, journal.exploits(), accuracy, wall_seconds
    )
    print(f"results: {store.root}/{folder}", flush=True)
    return 0 if succeeded else 1


def search_folder(search: SearchConfig, recipe: Recipe, fingerprints: dict[str, str]) -> str:
    """Where a search's results are, below the store's root.

    It names what decides the results; where they are kept and on how many workers is left out.
    """
    asked, trained = dataclasses.asdict(search), dataclasses.asdict(recipe)
    for name in ("name", "recipe", "storage", "workers", "max_concurrent_trials"):
        del asked[name]
    for name in ("data", "components"):
        del trained[name]
    identity = digest(json.loads(json.dumps([asked, trained, recipe.data.num_frames, fingerprints])))[:8]
    return f"searches/{search.name}-{identity}"


@contextlib.contextmanager
def cluster() -> Iterator[str]:
    """Joins the cluster that there is, or starts one on this machine. Gives the dashboard's address."""
    connected_before = ray.is_initialized()
    context = ray.init(
        include_dashboard=True, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True
    )
    try:
        yield f"http://{context.dashboard_url}" if context.dashboard_url else "not running"
    finally:
        if not connected_before:
            ray.shutdown()


def _check_resources(search: SearchConfig, recipe: Recipe) -> None:
    """On one machine, a group that can never be placed is refused; a cluster of several may still grow."""
    if len(ray.nodes()) > 1:
        return
    workers, have = search.workers, ray.cluster_resources()
    for stage in (recipe.first_stage, recipe.second_stage):
        need = {"CPU": stage.num_workers * workers.num_cpus, "GPU": stage.num_workers * workers.use_gpu}
        for resource, amount in need.items():
            if amount > have.get(resource, 0):
                raise UserError(
                    f"workers: a group of {stage.num_workers} needs {amount:g} {resource}, this machine has "
                    f"{have.get(resource, 0):g}; lower num_workers or workers.num_cpus, or join a cluster"
                )


def _engine_setup(search: SearchConfig, recipe: Recipe, name: str, ray_files: str) -> EngineSetup:
    worker = WorkerSetup(
        engine=name,
        storage=Store(search.storage).uri,
        data_folder=recipe.data.folder,
        components=recipe.components,
        validation=recipe.validation,
        num_frames=recipe.data.num_frames,
        seed=recipe.seed,
        training=recipe.training,
    )
    return EngineSetup(search.workers, worker, recipe.transition.min_step, ray_files)


def _prefetch(engine: Any, search: SearchConfig, setup: TrialSetup) -> None:
    """Has the stretch that all trials share for certain trained while they start: stage one up to min_step."""
    recipe, names = setup.recipe, search.param_space
    if not search.share or any(name.startswith(("seed", "training", "first_stage")) for name in names):
        return
    certain = 0 if "transition.min_step" in names else recipe.transition.min_step
    if certain == 0 and ("transition.at_step" in names or recipe.transition.at_step == 0):
        return  # a trial may leave stage one out
    root = root_key(recipe, setup.fingerprints, setup.extra)
    segments: list[Segment] = []
    while not segments or segments[-1].end_step < certain:
        following = next_segment(recipe, root, segments[-1] if segments else None, False)
        assert following is not None
        segments.append(following)
    ray.get(engine.prefetch.remote(root, [segment.to_dict() for segment in segments]))


def _tuner(
    search: SearchConfig,
    recipe: Recipe,
    engine: Any,
    setup: TrialSetup,
    journal: Journal,
    log: SearchLog,
    ray_files: str,
) -> tune.Tuner:
    """Ray Tune's own search over the space, with decisions journaled and progress logged."""

    def hold(trial: str, key: str) -> None:
        ray.get(engine.hold.remote(trial, key))

    return tune.Tuner(
        tune.with_parameters(Trial, setup=setup),
        param_space={name: domain(space) for name, space in search.param_space.items()},
        tune_config=tune.TuneConfig(
            metric=search.metric,
            mode=search.mode,
            num_samples=search.num_samples,
            search_alg=make_search_algorithm(search, journal),
            scheduler=make_scheduler(search, recipe, journal, hold),
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=ray_files,
            callbacks=[log],
            failure_config=tune.FailureConfig(max_failures=MAX_TRIAL_RESTARTS),
            verbose=0,
        ),
    )


def _fit(tuner: tune.Tuner) -> None:
    """Runs Ray Tune, which wraps what our callbacks and schedulers raise.

    Raises:
        UserError: One of them has.
    """
    try:
        tuner.fit()
    except tune.TuneError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise cause from None


def _trial_name(trial: Any) -> str:
    return f"trial-{trial_number(trial.trial_id, trial.config):04d}"
