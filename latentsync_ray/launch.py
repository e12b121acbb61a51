"""A search on a Ray cluster: joined or started first, since it refuses within seconds what it could never hold."""

from __future__ import annotations

import time

from latentsync_ray.cluster import check_resources, cluster
from latentsync_ray.config import Recipe
from latentsync_ray.search_config import SearchConfig
from latentsync_ray.store import Store


def launch(search: SearchConfig, recipe: Recipe) -> int:
    """Runs a search, or goes on with it, on the cluster that there is or on this machine.

    Returns:
        The exit status of `search.run_search`.

    Raises:
        UserError: Something is wrong with what the user gave.
        KeyboardInterrupt: After Ctrl-C; what was trained is kept.
    """
    started, store = time.monotonic(), Store(search.storage)
    with cluster() as dashboard:
        warnings = check_resources(search, recipe)

        from latentsync_ray.search import run_search  # with torch and diffusers, which take longer than the rest

        for line in warnings:
            print(f"warning: {line}", flush=True)
        return run_search(search, recipe, store, dashboard, started)
