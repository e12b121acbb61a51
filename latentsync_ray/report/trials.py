"""What the trials of a search have reported, and what follows from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from latentsync_ray.config.errors import UserError
from latentsync_ray.config.loading import Variants
from latentsync_ray.config.recipe import SECOND_STAGE, Recipe
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.store import TRIALS_FILE, Store


@dataclass
class TrialLog:
    """What is known of one trial."""

    number: int
    parameters: dict[str, Any]
    results: list[dict[str, Any]] = field(default_factory=list)
    """What was reported at each boundary of its lineage, oldest first; a clone's lineage begins with its source's."""
    status: str = "running"
    """running, finished (ran to its end), stopped (by the scheduler), diverged, failed, unfinished (at a budget)."""
    error: str = ""
    asked: dict[str, int] = field(default_factory=dict)
    """Key -> steps of each segment that it asked for."""
    shared: list[str] = field(default_factory=list)
    """Keys of those that were found, or trained for another trial too."""

    @property
    def last(self) -> dict[str, Any]:
        """Its newest result; empty before the first."""
        return self.results[-1] if self.results else {}

    @property
    def transition_step(self) -> int | None:
        """global_step at which it left stage one, if it has."""
        last = self.last
        return last["global_step"] - last["second_stage_step"] if last.get("stage") == SECOND_STAGE else None

    @property
    def num_steps(self) -> int:
        """Steps that it would have had to train by itself."""
        return sum(self.asked.values())

    @property
    def num_steps_shared(self) -> int:
        """Steps that it did not have to wait for as the only one: found, or trained for another trial too."""
        return sum(self.asked[key] for key in set(self.shared))


def leave_unfinished(search: SearchConfig, trials: dict[int, TrialLog]) -> None:
    """What a budget has kept from its end is unfinished, trials that never began among it."""
    for trial in trials.values():
        if trial.status == "running":
            trial.status = "unfinished"
    for number in range(search.num_trials):
        trials.setdefault(number, TrialLog(number, {}, status="unfinished"))


def best_trial(search: SearchConfig, trials: dict[int, TrialLog]) -> TrialLog | None:
    """The best last result among the trials that ran to their end; None if none did."""
    finished = [trial for trial in trials.values() if trial.status == "finished"]
    sign = 1 if search.mode == "min" else -1
    return min(finished, key=lambda trial: (sign * trial.last[search.metric], trial.number), default=None)


class Ends:
    """Where trials end; worked out once for each trial's values.

    Args:
        recipe: The recipe before a trial's own values.
    """

    def __init__(self, recipe: Recipe):
        self._variants = Variants(recipe)
        self._known: dict[int, tuple[dict[str, Any], tuple[int, int]]] = {}

    def steps_left(self, trial: TrialLog) -> tuple[int, int]:
        """Steps of stage one and two to the end of a trial, at most: the transition may come sooner."""
        first, second = self._lengths(trial)
        if trial.transition_step is None:
            return max(0, first - int(trial.last.get("global_step", 0))), second
        return 0, max(0, second - int(trial.last["second_stage_step"]))

    def _lengths(self, trial: TrialLog) -> tuple[int, int]:
        known = self._known.get(trial.number)
        if known is None or known[0] != trial.parameters:
            try:
                recipe = self._variants.recipe(trial.parameters)
                lengths = recipe.transition.latest_step, recipe.second_stage.num_steps
            except UserError:
                lengths = 0, 0  # it breaks a rule, and fails at its first step
            known = self._known[trial.number] = trial.parameters, lengths
        return known[1]


def num_distinct_steps(trials: dict[int, TrialLog]) -> int:
    """Steps in the union of all that trials asked for."""
    return sum({key: steps for trial in trials.values() for key, steps in trial.asked.items()}.values())


def write_trials(
    store: Store, folder: str, trials: dict[int, TrialLog], best: TrialLog | None, keep_first_stage_from: int
) -> None:
    """Keeps what became of a search's trials. As long as there are none, the search has begun and not ended.

    Args:
        store: Where the search is kept.
        folder: The search's folder below the store's root.
        trials: By number.
        best: The best of them, if any has a result.
        keep_first_stage_from: Stage-one states from this global_step on are kept, since a branch may start there.
    """
    values = {
        "best": best and best.number,
        "keep_first_stage_from": keep_first_stage_from,
        "trials": [asdict(trials[number]) for number in sorted(trials)],
    }
    store.write_json(f"{folder}/{TRIALS_FILE}", values)


def read_trials(store: Store, folder: str) -> tuple[dict[int, TrialLog], int | None] | None:
    """A search's trials by number, and the number of the best if any has a result; None if it has not ended.

    Raises:
        DamagedEntryError: The file is not what was written.
    """
    values = store.read_json(f"{folder}/{TRIALS_FILE}")
    if values is None or not values["trials"]:
        return None
    return {trial["number"]: TrialLog(**trial) for trial in values["trials"]}, values["best"]
