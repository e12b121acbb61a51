"""A search on a Ray cluster: joined or started first, since it refuses within seconds what it could never hold."""

from __future__ import annotations

import contextlib
import tempfile
import time
import uuid
from collections.abc import Iterator

import ray

from latentsync_ray.cluster.connection import cluster, outlives_this_process
from latentsync_ray.cluster.resources import check_resources, nodes_come_and_go
from latentsync_ray.config.lengths import extremes
from latentsync_ray.config.recipe import Recipe
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.engine.groups import remove_what_is_left
from latentsync_ray.engine.messages import EngineSetup, GroupSetup
from latentsync_ray.engine.start import StartedEngine, start_engine
from latentsync_ray.search.display import Display
from latentsync_ray.search.trackers import check_trackers
from latentsync_ray.store import RAY_FOLDER, Store
from latentsync_ray.store.patience import Patience


def launch(search: SearchConfig, recipe: Recipe, display: Display) -> tuple[int, str]:
    """Runs a search, or goes on with it, on the cluster that there is or on this machine.

    Args:
        search: What is searched, and how.
        recipe: The recipe that trials vary.
        display: Where it is shown.

    Returns:
        What `search.run_search` returns: the exit status, and the folder or URI of the results.

    Raises:
        UserError: Something is wrong with what the user gave.
        KeyboardInterrupt: After Ctrl-C; what was trained is kept.
    """
    started = time.monotonic()
    store = Store(search.storage, Patience(60 * search.storage_retry_minutes))
    store.check_writable()
    check_trackers(search)
    display.phase("starting Ray")
    stays = ray.is_initialized()
    with cluster() as dashboard:
        for line in check_resources(search, recipe):
            print(f"warning: {line}", flush=True)
        with _engine(search, recipe, store, stays or outlives_this_process(), display) as engine:
            display.phase("loading networks")
            from latentsync_ray.search.run import (
                run_search,  # torch and diffusers load beside the engine's first workers
            )

            return run_search(search, recipe, store, engine, display, dashboard, started)


@contextlib.contextmanager
def _engine(
    search: SearchConfig, recipe: Recipe, store: Store, cluster_stays: bool, display: Display
) -> Iterator[StartedEngine]:
    """An engine, and a place for Ray's own files; neither is left behind.

    Args:
        search: What is searched, and how.
        recipe: The recipe that trials vary.
        store: At `search.storage`.
        cluster_stays: Whether the cluster is still there afterwards.
        display: Removes that place where a second interrupt leaves no time for more.
    """
    name, preemptible = f"latentsync_ray-{uuid.uuid4().hex}", nodes_come_and_go()
    with contextlib.ExitStack() as leaving:
        if preemptible:  # all nodes have to see the place
            results = store.uri_of(f"{RAY_FOLDER}/{name}")
            leaving.callback(store.remove_folder, f"{RAY_FOLDER}/{name}")
        else:
            folder = tempfile.TemporaryDirectory(prefix="latentsync_ray-", ignore_cleanup_errors=True)
            results = leaving.enter_context(folder)
            display.at_once = folder.cleanup
        groups = GroupSetup(
            name, search.workers, recipe.training, store.uri, store.patience.seconds, results, preemptible
        )
        keep_from, _ = extremes(search, recipe, "transition.min_step")
        actor = start_engine(EngineSetup(groups, keep_from, search.budget))
        if cluster_stays:  # otherwise its end gives all back
            leaving.callback(remove_what_is_left, search.workers)
        leaving.callback(ray.kill, actor)  # whatever it has started goes with it
        # A cluster that grows on demand is not asked for what may turn out to be of no use.
        least, most = extremes(search, recipe, "first_stage.num_workers")
        alike = search.environment != "strict"  # otherwise the first place is needed to look what workers have
        if least == most and search.start_from is None and not preemptible and alike:
            actor.warm_up.remote(least)
        yield StartedEngine(actor, name, results)
