"""What the trials of a search have reported, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from latentsync_ray.config import SearchConfig
from latentsync_ray.segment import SECOND_STAGE


@dataclass
class TrialLog:
    """What is known of one trial."""

    number: int
    parameters: dict[str, Any]
    results: list[dict[str, Any]] = field(default_factory=list)
    """What it reported at each boundary, oldest first."""
    status: str = "running"
    """running, finished (ran to its end), stopped (by the scheduler), diverged, failed, unfinished (at a budget)."""
    error: str = ""

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
    def num_steps_shared(self) -> int:
        """Steps that it did not have to wait for as the only one: found, or trained for another trial too."""
        steps = [0, *(result["global_step"] for result in self.results)]
        return sum(b - a for a, b, result in zip(steps, steps[1:], self.results, strict=False) if result["cached"])


def num_trials(search: SearchConfig) -> int:
    """How many trials the search has in all."""
    total = search.num_samples
    for space in search.param_space.values():
        total *= len(space["grid"]) if "grid" in space else 1
    return total


def leave_unfinished(search: SearchConfig, trials: dict[int, TrialLog]) -> None:
    """What a budget has kept from its end is unfinished, trials that never began among it."""
    for trial in trials.values():
        if trial.status == "running":
            trial.status = "unfinished"
    for number in range(num_trials(search)):
        trials.setdefault(number, TrialLog(number, {}, status="unfinished"))


def best_trial(search: SearchConfig, trials: dict[int, TrialLog]) -> TrialLog | None:
    """The best last result among the trials that ran to their end; among all, if none did."""
    candidates = [trial for trial in trials.values() if trial.status == "finished"]
    candidates = candidates or [trial for trial in trials.values() if trial.results]
    sign = 1 if search.mode == "min" else -1
    return min(candidates, key=lambda trial: (sign * trial.last[search.metric], trial.number), default=None)


def num_distinct_steps(trials: dict[int, TrialLog]) -> int:
    """Steps in the union of all lineages."""
    segments = {}
    for trial in trials.values():
        start = 0
        for result in trial.results:
            segments[result["key"]] = result["global_step"] - start
            start = result["global_step"]
    return sum(segments.values())
