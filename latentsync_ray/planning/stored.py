"""What a store tells of a search that is to come: what is trained already, and what steps and starts take."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median

from latentsync_ray.config.errors import UserError
from latentsync_ray.config.recipe import Recipe
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.core.baselines import baselines_of
from latentsync_ray.core.forecast import Forecast
from latentsync_ray.core.record import Record
from latentsync_ray.core.trial_recipe import TrialRecipe
from latentsync_ray.planning.forecast import Known, forecast
from latentsync_ray.planning.plan import plan_trials
from latentsync_ray.planning.scenarios import Scenarios, scenarios
from latentsync_ray.planning.times import stored_times
from latentsync_ray.store import DamagedEntryError, Store

_MOST_TRIALS = 200
"""Of a search for which a forecast takes seconds at most."""
_MOST_OTHERS = 300
"""Records that are read besides the search's own, for how long steps take."""


def look(store: Store, ways: Scenarios, known: Known, keys_hold: bool) -> Known:
    """Adds what the store tells to what is known.

    Args:
        store: At `search.storage`.
        ways: How the search may go.
        known: Times that were measured or given are kept.
        keys_hold: Whether the trials' roots are those of what training reads, so that their keys can be looked up.
    """
    segments = {segment.key: segment for way in (*ways.fewest, ways.likely, ways.most) for segment in way.distinct}
    folders = store.list_folders("segments")
    own = list(_records(store, (key for key in folders if keys_hold and key in segments)))
    samples = list({segment.stage: segment for segment in segments.values()}.values())
    times = stored_times(samples, own)
    if len(times) < len(samples):
        others = _records(store, (key for key in reversed(folders) if key not in segments or not keys_hold))
        times = stored_times(samples, itertools.chain(own, itertools.islice(others, _MOST_OTHERS)))
    startup_seconds = _startup_seconds(store)
    return replace(
        known,
        times={**times, **known.times},
        startup_seconds=known.startup_seconds if startup_seconds is None else startup_seconds,
        stored={record.key: record.state.kept for record in own} if keys_hold else None,
    )


def foretell(
    store: Store, search: SearchConfig, recipe: Recipe, root_of: Callable[[TrialRecipe], str]
) -> Forecast | None:
    """What a search takes from now on, by what its store tells; None if it is too large, or no draw keeps the rules.

    Args:
        store: At `search.storage`.
        search: What is asked.
        recipe: The recipe before a trial's own values.
        root_of: Key of the state before a trial's first step.
    """
    if search.num_trials > _MOST_TRIALS:
        return None
    try:
        compared = baselines_of(search, recipe)
        trials = plan_trials(search, recipe, any_policy=True, root_of=root_of, compared=compared)
    except UserError:
        return None
    ways = scenarios(search, recipe, trials)
    return forecast(search, recipe, ways, look(store, ways, Known(), keys_hold=True))


def _records(store: Store, keys: Iterator[str]) -> Iterator[Record]:
    """Records that can be read; of a damaged one nothing is known."""
    for key in keys:
        try:
            record = store.read_record(key)
        except DamagedEntryError:
            continue
        if record is not None:
            yield record


def _startup_seconds(store: Store) -> float | None:
    """How long the first worker group of a search took to start, the median of all searches; None if none tells."""
    found = []
    for name in store.list_folders("searches"):
        try:
            summary = store.read_json(f"searches/{name}/summary.json")
        except DamagedEntryError:
            continue
        seconds = (summary or {}).get("startup_seconds")
        found += [] if seconds is None else [float(seconds)]
    return median(found) if found else None
