"""What became of the trials of a search, as data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from latentsync_ray.config.plain import Parameters
from latentsync_ray.config.recipe import SECOND_STAGE
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.core.baselines import Role
from latentsync_ray.core.segment import Metrics, Segment


class TrialStatus(StrEnum):
    """What has become of a trial."""

    FINISHED = "finished"
    """It ran to its end."""
    STOPPED = "stopped"
    """The scheduler has ended it."""
    DIVERGED = "diverged"
    FAILED = "failed"
    UNFINISHED = "unfinished"
    """A budget was used up before its end."""
    RUNNING = "running"


@dataclass(frozen=True, slots=True)
class Boundary:
    """What a trial has reported at a report boundary: a point of its curves."""

    key: str
    """Of the segment that ends there."""
    parent: str
    """Key of the segment before."""
    stage: str
    """`first_stage` or `second_stage`."""
    global_step: int
    """The boundary."""
    second_stage_step: int
    """Steps of stage two up to there."""
    metrics: Mapping[str, float]
    """`val/*` there, and `train/*` of the segment, by name."""
    at_end: bool = False
    """Whether the trial has all its steps behind it."""
    cost: float = 0.0
    """Relative cost of the steps up to there (`config.length.cost`)."""

    @classmethod
    def after(cls, segment: Segment, metrics: Metrics, at_end: bool = False, cost: float = 0.0) -> Boundary:
        """The boundary at the end of a segment."""
        place = segment.stage, segment.end_step, segment.second_stage_step
        return cls(segment.key, segment.parent, *place, metrics, at_end, cost)


@dataclass(frozen=True)
class TrialResult:
    """What became of one trial, or is known of it so far."""

    number: int
    """In the order of creation."""
    config: Parameters
    """The values that the search has given to the recipe."""
    results: tuple[Boundary, ...] = ()
    """What was reported at each boundary of its lineage, oldest first; a clone's lineage begins with its source's."""
    status: TrialStatus = TrialStatus.RUNNING
    error: str = ""
    """Why it diverged or failed; empty otherwise."""
    asked: Mapping[str, int] = field(default_factory=dict)
    """Key -> steps of each segment that it asked for."""
    shared: tuple[str, ...] = ()
    """Keys of those that were found, or trained for another trial too."""
    role: Role = Role.SEARCHED
    """Why it was trained; trials beside the search's own have numbers after theirs."""

    @property
    def last(self) -> Boundary | None:
        """Its newest result; None before the first."""
        return self.results[-1] if self.results else None

    @property
    def metrics(self) -> Mapping[str, float]:
        """At its last boundary: `val/*`, and `train/*` of its last segment; empty before the first."""
        return self.last.metrics if self.last else {}

    @property
    def global_step(self) -> int:
        """Of its last boundary."""
        return self.last.global_step if self.last else 0

    @property
    def second_stage_step(self) -> int:
        """Of its last boundary."""
        return self.last.second_stage_step if self.last else 0

    @property
    def cost(self) -> float:
        """Relative cost of its steps up to its last boundary."""
        return self.last.cost if self.last else 0.0

    @property
    def key(self) -> str | None:
        """Key of its last segment, for `export --segment` and `train --from`."""
        return self.last.key if self.last else None

    @property
    def transition_step(self) -> int | None:
        """global_step at which it left stage one, if it has."""
        last = self.last
        return last.global_step - last.second_stage_step if last and last.stage == SECOND_STAGE else None

    @property
    def num_steps(self) -> int:
        """Steps that it would have had to train by itself."""
        return sum(self.asked.values())

    @property
    def num_steps_shared(self) -> int:
        """Steps that it did not have to wait for as the only one: found, or trained for another trial too."""
        return sum(self.asked[key] for key in set(self.shared))


def with_unfinished(search: SearchConfig, trials: Iterable[TrialResult]) -> list[TrialResult]:
    """The trials of a search that a budget has ended: what ran is unfinished, and so is what never began."""
    known = {trial.number: trial for trial in trials}
    for trial in known.values():
        if trial.status == TrialStatus.RUNNING:
            known[trial.number] = replace(trial, status=TrialStatus.UNFINISHED)
    for number in range(search.num_trials):
        known.setdefault(number, TrialResult(number, {}, status=TrialStatus.UNFINISHED))
    return [known[number] for number in sorted(known)]


def best_first(search: SearchConfig, trials: Iterable[TrialResult]) -> list[TrialResult]:
    """The search's own trials that ran to their ends, the one with the best last result first."""
    finished = [t for t in trials if t.status == TrialStatus.FINISHED and t.role == Role.SEARCHED]
    sign = 1 if search.mode == "min" else -1
    return sorted(finished, key=lambda trial: (sign * trial.metrics[search.metric], trial.number))


def best_trial(search: SearchConfig, trials: Iterable[TrialResult]) -> TrialResult | None:
    """The first of them; None if none ran to its end."""
    return next(iter(best_first(search, trials)), None)
