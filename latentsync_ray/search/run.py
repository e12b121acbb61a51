"""A search from its settings to its results: the cluster, the engine, and Ray Tune's own search over them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import ray
from ray import tune

from latentsync_ray.cli import command_line
from latentsync_ray.cluster.resources import nodes_come_and_go
from latentsync_ray.config.errors import UserError
from latentsync_ray.config.lengths import extremes
from latentsync_ray.config.plain import Settings, settings
from latentsync_ray.config.recipe import Recipe
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.core.baselines import baselines_of
from latentsync_ray.core.course import first_stage_segments
from latentsync_ray.core.training import code_fingerprint, load_training
from latentsync_ray.core.trial_recipe import TrialRecipe
from latentsync_ray.engine.budget import exceeded
from latentsync_ray.engine.messages import EngineStatus, WorkerSetup
from latentsync_ray.engine.notes import read_spent
from latentsync_ray.engine.start import StartedEngine, workers_environment
from latentsync_ray.planning.stored import foretell
from latentsync_ray.report.origin import write_origin
from latentsync_ray.report.report import PAGE_FILE, report_lines, write_report
from latentsync_ray.report.summary import Summary
from latentsync_ray.report.trials import TrialStatus, with_unfinished
from latentsync_ray.report.trials_file import read_finished, write_trials
from latentsync_ray.search.beside import TrialsBeside, confirmations, num_beside
from latentsync_ray.search.display import Display
from latentsync_ray.search.ending import MAX_TRIAL_RESTARTS, Ending
from latentsync_ray.search.job import Job, lengthened, search_folder
from latentsync_ray.search.journal import Journal
from latentsync_ray.search.live import LiveView
from latentsync_ray.search.progress import Progress
from latentsync_ray.search.report_writer import ReportWriter
from latentsync_ray.search.schedulers import make_scheduler
from latentsync_ray.search.suggestions import make_search_algorithm, tune_domain
from latentsync_ray.search.tensorboard import TensorBoardLog
from latentsync_ray.search.trackers import Tracker, make_trackers
from latentsync_ray.search.trial import Trial, trial_name
from latentsync_ray.search.walk import TrialSetup
from latentsync_ray.store import Store
from latentsync_ray.store.lineage import lineage_of
from latentsync_ray.store.patience import Patience
from latentsync_ray.store.runner import sole_runner
from latentsync_ray.store.searches import GIVEN_UP_FILE

_STATUS_SECONDS = 2.0
UNFINISHED = 3
"""Exit status of a search that a budget has stopped before its end."""


def run_search(
    search: SearchConfig,
    recipe: Recipe,
    store: Store,
    engine: StartedEngine,
    display: Display,
    dashboard: str,
    started: float,
) -> tuple[int, str]:
    """Runs a search, or goes on with it, on the cluster that this process is connected to, and writes its results.

    Args:
        search: What is searched, and how.
        recipe: The recipe that trials vary.
        store: At `search.storage`.
        engine: Not serving yet; whoever has started it also ends it.
        display: Where the search is shown.
        dashboard: Address of the cluster's dashboard, for the user.
        started: `time.monotonic()` when the command began, for its wall clock.

    Returns:
        The exit status: 0, 1 if a trial has failed or none has run to its end, or 3 if a budget was used up before
        the end. And the folder or URI of the results.

    Raises:
        UserError: Something is wrong with what the user gave.
        KeyboardInterrupt: After Ctrl-C; what was trained is kept.
    """
    given, training = recipe, load_training(recipe.training)
    inputs = training.prepare(recipe, store)
    recipe, fingerprints = inputs.recipe, {**inputs.fingerprints, **code_fingerprint(training)}
    for warning in inputs.warnings:
        print(f"warning: {warning}", flush=True)
    strict = workers_environment(search.workers) if search.environment == "strict" else None
    extra: Settings = {} if strict is None else {"environment": settings(strict)}
    lineage = lineage_of(store, search, recipe, TrialRecipe.of(recipe).root_key(fingerprints, extra))
    if lineage:
        search = dataclasses.replace(search, start_from=lineage[-1].key)
    folder = search_folder(search, recipe, fingerprints)
    write_origin(store, folder, search, given, command_line())
    recipe = lengthened(recipe, search.trials.extend)
    compared = baselines_of(search, recipe)
    job = Job(search, recipe, compared, store, folder, inputs.figures, started)
    finished = read_finished(store, folder)
    if finished is not None and not job.goes_on(finished):
        display.stop()
        print("this search is finished: nothing to train", flush=True)
        return _report(job, job.summary(finished, EngineStatus(), job.journal().clonings())), store.uri_of(folder)
    stored_bytes = 0 if search.budget.storage_gb is None else store.state_bytes()
    used_up = exceeded(search.budget, read_spent(store, folder), stored_bytes)
    if used_up is not None:
        print(f"{used_up}: nothing was trained; raise it and run the same command again", flush=True)
        return UNFINISHED, store.uri_of(folder)
    setup = TrialSetup(
        engine=engine.name,
        recipe=TrialRecipe.of(recipe),
        fingerprints=fingerprints,
        extra=extra,
        share=search.share,
        lineage=tuple(lineage),
        leave_after=search.start_stage is not None,
    )
    with sole_runner(store, folder):
        print(f"dashboard: {dashboard}", flush=True)
        print(f"report: {store.uri_of(f'{folder}/{PAGE_FILE}')}", flush=True)
        if not store.is_local:
            print("note: this storage cannot tell whether another command runs the same search; do not", flush=True)
        workers = WorkerSetup(settings(recipe), store.identity(), strict)
        return _train(job, engine, display, workers, setup), store.uri_of(folder)


def _train(job: Job, engine: StartedEngine, display: Display, workers: WorkerSetup, setup: TrialSetup) -> int:
    """Has Ray Tune run the trials, and writes the results. Returns the exit status."""
    search, recipe, store, folder = job.search, job.recipe, job.store, job.folder
    journal = job.journal()
    for notice in journal.notices:
        print(f"note: {notice}", flush=True)
    display.phase("starting workers")
    num_trials = search.num_trials + num_beside(search, job.compared)
    serving = engine.actor.serve.remote(folder, workers, num_trials)
    _prefetch(engine.actor, search, recipe, setup)
    keep_first_stage_from, _ = extremes(search, recipe, "transition.min_step")
    plan = None if setup.lineage else foretell(store, search, recipe, setup.root_key)
    write_trials(store, folder, [], None, keep_first_stage_from)  # from now on it is a search that has not ended
    store.remove(f"{folder}/{GIVEN_UP_FILE}")
    logs: list[TensorBoardLog | Tracker] = [
        TensorBoardLog(store, folder, search.metric),
        *make_trackers(search, store, folder),
    ]
    ending, progress = Ending(engine.actor), Progress(logs)
    others = TrialsBeside(setup, engine.actor, progress.keep_beside)
    so_far = _SoFar(job, engine.actor, progress)
    # A page is not worth waiting for a storage.
    pages = ReportWriter(Store(search.storage, Patience(0)), folder, so_far.summary)
    with contextlib.ExitStack() as reporting:
        for log in logs:  # they end last: neither the answer nor the groups' end waits for a tracker
            reporting.enter_context(log)
        with pages, LiveView(engine.actor, progress, search, recipe, display):
            others.start(job.compared, search.num_trials)
            while True:
                num_noticed = len(journal.notices)
                with _few_starts_at_once(search):
                    _fit(_tuner(search, recipe, engine, setup, journal, ending, [progress, ending]))
                for notice in journal.notices[num_noticed:]:
                    display.note(notice)
                num_lost = ending.go_again()
                if not num_lost:
                    break
                display.note(f"{num_lost} trials were lost as they began; what is decided is followed again")
                journal = job.journal()
                progress.begin_again()
                ray.get(engine.actor.begin_again.remote())
            others.wait(ending.stop_all)
            if ending.stopped_by is None:
                again = confirmations(search, recipe, progress.trials.values(), job.compared)
                others.start(again, search.num_trials + len(job.compared))
                others.wait(ending.stop_all)
        display.stop()
        trials = list(progress.trials.values())
        if ending.stopped_by is not None:
            trials = with_unfinished(search, trials)
        status = dataclasses.replace(ray.get(engine.actor.status.remote()), stopped_by=ending.stopped_by)
        stopping = engine.actor.stop.remote()  # groups end while the report is written
        exit_status = _report(
            job, job.summary([*trials, *progress.beside.values()], status, journal.clonings(), plan)
        )
        ray.get(stopping)
        ray.wait([serving])  # Ray prints an error for a call that outlives its actor
        return exit_status


class _SoFar:
    """What a search has come to while it runs, as the engine and the trials show it."""

    def __init__(self, job: Job, engine: Any, progress: Progress):
        self._job, self._engine, self._progress = job, engine, progress
        self._status = EngineStatus()

    def summary(self) -> Summary:
        """A summary; of the engine the last one known, if it is being restarted or has ended."""
        with contextlib.suppress(ray.exceptions.RayError, ValueError):
            self._status = ray.get(self._engine.status.remote(), timeout=_STATUS_SECONDS)
        return self._job.summary(self._progress.all, self._status)


def _report(job: Job, summary: Summary) -> int:
    """Writes the report and tells the user. Returns the exit status."""
    write_report(job.store, job.folder, job.recipe, summary)
    for line in report_lines(summary):
        print(line, flush=True)
    if summary.num_by_status[TrialStatus.UNFINISHED]:
        return UNFINISHED
    return 0 if summary.succeeded else 1


def _prefetch(engine: Any, search: SearchConfig, recipe: Recipe, setup: TrialSetup) -> None:
    """Has the stretch that all trials share for certain trained while they start: stage one up to min_step."""
    names = search.param_space
    if (
        not search.share
        or setup.lineage
        or any(name.startswith(("seed", "training", "first_stage")) for name in names)
    ):
        return
    certain, _ = extremes(search, recipe, "transition.min_step")
    searched = any("transition.at_step.".startswith(f"{name}.") for name in names)
    if certain == 0 and (searched or recipe.transition.at_step == 0):
        return  # a trial may leave stage one out
    root = setup.root_key(setup.recipe)
    segments = first_stage_segments(setup.recipe, root, max(certain, 1))
    known = "second_stage.num_workers" not in names and not nodes_come_and_go()
    branch_workers = recipe.second_stage.num_workers if known else None
    engine.prefetch.remote(root, segments, branch_workers)


def _tuner(
    search: SearchConfig,
    recipe: Recipe,
    engine: StartedEngine,
    setup: TrialSetup,
    journal: Journal,
    ending: Ending,
    callbacks: list[tune.Callback],
) -> tune.Tuner:
    """Ray Tune's own search over the space, with decisions journaled and progress followed."""

    def checkpoint(trial: str, key: str) -> None:
        ray.get(engine.actor.checkpoint.remote(trial, key))

    return tune.Tuner(
        tune.with_parameters(Trial, setup=setup),
        param_space={name: tune_domain(domain) for name, domain in search.param_space.items()},
        tune_config=tune.TuneConfig(
            metric=search.metric,
            mode=search.mode,
            num_samples=search.num_samples,
            search_alg=make_search_algorithm(search, journal),
            scheduler=make_scheduler(search, recipe, journal, checkpoint),
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            storage_path=engine.results,
            callbacks=callbacks,
            stop=ending,
            failure_config=tune.FailureConfig(max_failures=MAX_TRIAL_RESTARTS),
            verbose=0,
        ),
    )


@contextlib.contextmanager
def _few_starts_at_once(search: SearchConfig) -> Iterator[None]:
    """Each trial starts a process; more of them at once than all CPUs but one would keep a worker from training.

    HyperBand needs all trials of a bracket to be there, and a cluster grows only for those that are waiting.
    """
    name = "TUNE_MAX_PENDING_TRIALS_PG"
    if name in os.environ or search.trial_scheduler.name == "hyperband" or nodes_come_and_go():
        yield
        return
    os.environ[name] = str(max(1, int(ray.cluster_resources().get("CPU", 1)) - 1))
    try:
        yield
    finally:
        del os.environ[name]


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
    return trial_name(trial.trial_id, trial.config)
