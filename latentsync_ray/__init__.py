"""Searches when a two-stage training should change stages, training what trials share only once.

search = latentsync_ray.load_search("search_spaces/transition.yaml", num_samples=4)
results = search.run()
results.get_best_result(), results.get_dataframe(), results.curves()
"""

from importlib.metadata import PackageNotFoundError, version

from latentsync_ray.api import Search, load_search, open_results

__all__ = ["Search", "__version__", "load_search", "open_results"]

try:
    __version__ = version("latentsync_ray")
except PackageNotFoundError:  # a checkout that is on the path and not installed
    __version__ = "unknown"
