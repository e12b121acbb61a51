"""Searches when a two-stage training should change stages, training what trials share only once.

search = latentsync_ray.load_search("search_spaces/transition.yaml", num_samples=4)
results = search.run()
results.get_best_result(), results.get_dataframe(), results.curves()
"""

from latentsync_ray.api import Search, load_search, open_results

__all__ = ["Search", "load_search", "open_results"]
