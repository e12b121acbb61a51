"""How a command begins a search: what the cluster can never hold is refused before anything else takes its time."""

from __future__ import annotations

import contextlib

from latentsync_ray.cluster import check_resources, cluster
from latentsync_ray.config import Recipe, SearchConfig
from latentsync_ray.store import Store


def launch(search: SearchConfig, recipe: Recipe) -> int:
    """Runs a search as `search.run_search` does. Returns the exit status.

    Raises:
        UserError: Something is wrong with what the user gave, or the cluster can never hold it.
    """
    with contextlib.ExitStack() as stack:
        if not _may_be_finished(search):  # a finished search needs no cluster
            stack.enter_context(cluster())
            check_resources(search, recipe)

        from latentsync_ray.search import run_search  # torch and the networks' libraries take seconds

        return run_search(search, recipe)


def _may_be_finished(search: SearchConfig) -> bool:
    """Whether some search of this name has ended; which one this is, only its inputs tell."""
    store = Store(search.storage)
    folders = (folder for folder in store.list_folders("searches") if folder.rpartition("-")[0] == search.name)
    return any(store.read_bytes(f"searches/{folder}/trials.json") is not None for folder in folders)
