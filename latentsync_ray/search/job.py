"""A search that is about to run: what is asked, what is compared, where results go, and what they come to so far."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from latentsync_ray.config.plain import settings, without
from latentsync_ray.config.recipe import Recipe
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.core.baselines import Asked
from latentsync_ray.core.forecast import Forecast
from latentsync_ray.core.hashing import digest
from latentsync_ray.core.segment import NUMERICS
from latentsync_ray.core.trial_recipe import TrialRecipe
from latentsync_ray.engine.messages import EngineStatus
from latentsync_ray.report.pairs import stored_terms
from latentsync_ray.report.remaining import Ends
from latentsync_ray.report.summary import Cloning, Summary, summarise
from latentsync_ray.report.trials import TrialResult, TrialStatus
from latentsync_ray.search.beside import confirmations, is_among
from latentsync_ray.search.journal import Journal
from latentsync_ray.store import Store


@dataclass(frozen=True)
class Job:
    """One call of a search."""

    search: SearchConfig
    """What is searched, and how."""
    recipe: Recipe
    """The recipe that trials vary, ready to train."""
    compared: Sequence[Asked]
    """The baselines."""
    store: Store
    """At `search.storage`."""
    folder: str
    """The search's folder below the store's root."""
    figures: Mapping[str, float]
    """What the training has measured of its inputs."""
    started: float
    """`time.monotonic()` when the command began."""

    def journal(self) -> Journal:
        """What was decided before, and is written on."""
        return Journal(self.store, f"{self.folder}/decisions")

    def goes_on(self, trials: Sequence[TrialResult]) -> bool:
        """Whether more is asked for than a finished search has: longer trials, or trials beside its own."""
        beside = [*self.compared, *confirmations(self.search, self.recipe, trials, self.compared)]
        if not all(is_among(asked, trials) for asked in beside):
            return True
        ends, finished = Ends(self.recipe), [trial for trial in trials if trial.status == TrialStatus.FINISHED]
        return self.search.trials.extend > 0 and any(ends.steps_left(trial).second_stage > 0 for trial in finished)

    def summary(
        self,
        trials: Iterable[TrialResult],
        status: EngineStatus,
        clonings: Sequence[Cloning] = (),
        plan: Forecast | None = None,
    ) -> Summary:
        """What the search has come to by now.

        Args:
            trials: What became of each.
            status: The engine's.
            clonings: Which trial became a clone of which.
            plan: What this call was expected to take.
        """
        return summarise(
            self.search,
            self.recipe,
            trials,
            status,
            clonings,
            self.figures,
            time.monotonic() - self.started,
            stored_terms(self.store),
            self.store.uri_of(self.folder),
            plan,
        )


def search_folder(search: SearchConfig, recipe: Recipe, fingerprints: Mapping[str, str]) -> str:
    """Where a search's results are, below the store's root.

    It names what decides the results; where they are kept and on how many workers is left out.
    """
    placed = (
        *("name", "recipe", "storage", "storage_retry_minutes"),
        *("workers", "max_concurrent_trials", "budget", "trials", "baselines", "confirm", "trackers"),
    )
    asked, trained = without(settings(search), placed), settings(TrialRecipe.of(recipe))
    identity = digest([NUMERICS, asked, trained, dict(fingerprints)])[:8]
    return f"searches/{search.name}-{identity}"


def lengthened(recipe: Recipe, num_steps: int) -> Recipe:
    """The recipe with so many more steps of stage two."""
    fixed, length = recipe.second_stage.num_steps, recipe.length
    if fixed is not None:
        second_stage = dataclasses.replace(recipe.second_stage, num_steps=fixed + num_steps)
        return dataclasses.replace(recipe, second_stage=second_stage)
    assert length is not None
    if length.steps is not None:
        return dataclasses.replace(recipe, length=dataclasses.replace(length, steps=length.steps + num_steps))
    cost = length.total + num_steps * length.second_stage
    return dataclasses.replace(recipe, length=dataclasses.replace(length, cost=cost))
