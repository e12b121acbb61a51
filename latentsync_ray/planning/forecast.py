"""What a search is expected to take, from the fewest steps to the most that it can come to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from latentsync_ray.config.lengths import extremes
from latentsync_ray.config.recipe import FIRST_STAGE, SECOND_STAGE, Recipe
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.core.forecast import Forecast, Span, StageTimes
from latentsync_ray.core.segment import Segment
from latentsync_ray.core.trial_recipe import STAGES
from latentsync_ray.planning.scenarios import Scenario
from latentsync_ray.planning.simulation import Costs, Outcome, Simulation

_HOUR = 3600.0


@dataclass(frozen=True)
class Known:
    """What is known before a search runs."""

    times: Mapping[str, StageTimes] = field(default_factory=dict)
    """By stage; without both, steps alone are foretold."""
    startup_seconds: float = 60.0
    """Of a worker group."""
    gpu_price: float | None = None
    """Of an hour of one GPU."""
    stored: Mapping[str, bool] | None = None
    """Key of each stored segment -> whether its state is kept; None if that is not known."""


def forecast(search: SearchConfig, recipe: Recipe, ways: Sequence[Scenario], known: Known) -> Forecast:
    """What a search takes from now on.

    Args:
        search: What is asked.
        recipe: The recipe before a trial's own values.
        ways: The fewest, the likely and the most steps; see `scenarios`.
        known: What is known.
    """
    found = [_Foretold(search, recipe, way, known) for way in ways]
    steps = {stage: [one.steps(stage) for one in found] for stage in STAGES}
    timed = found if {segment.stage for one in found for segment in one.trained} <= known.times.keys() else []
    hours = _span(one.gpu_seconds / _HOUR for one in timed)
    return Forecast(
        trials=len(ways[-1].trials),
        first_stage_steps=_ordered(steps[FIRST_STAGE]),
        second_stage_steps=_ordered(steps[SECOND_STAGE]),
        steps_without_sharing=_ordered([one.steps_asked for one in found]),
        steps_stored=None if known.stored is None else sum(s.num_steps for s in found[-1].stored),
        first_stage_seconds=found[-1].step_seconds.get(FIRST_STAGE),
        second_stage_seconds=found[-1].step_seconds.get(SECOND_STAGE),
        gpu_hours=hours,
        wall_hours=_span(one.wall_seconds / _HOUR for one in timed),
        price=None if hours is None or known.gpu_price is None else hours.times(known.gpu_price),
        bytes_written=_span(one.bytes_of(one.trained) for one in timed),
        bytes_kept=_span(one.bytes_of(one.kept) for one in timed),
    )


def _span(values: Iterable[float]) -> Span | None:
    values = list(values)
    return _ordered(values) if values else None


def _ordered(values: Sequence[float]) -> Span:
    """The figures of the three scenarios; fewer steps in all may be more of one stage."""
    return Span(min(values), values[1], max(values))


class _Foretold:
    """One scenario, on a virtual clock."""

    def __init__(self, search: SearchConfig, recipe: Recipe, way: Scenario, known: Known):
        self._times, self._way = known.times, way
        one = way.trials[0].recipe
        self.step_seconds = {
            stage: times.step_seconds(one.report_every_steps(stage)) for stage, times in known.times.items()
        }
        self._keep_from, _ = extremes(search, recipe, "transition.min_step")
        self.stored = [segment for segment in way.distinct if segment.key in (known.stored or {})]
        has_state = [(segment, (known.stored or {})[segment.key]) for segment in self.stored]
        seconds = {stage: self.step_seconds.get(stage, 1.0) for stage in STAGES}
        costs = Costs(seconds, known.startup_seconds, search.workers.idle_seconds)
        sizes = [trial.recipe.num_workers(stage) for trial in way.trials for stage in STAGES]
        num_gpus = search.workers.max_groups * max(sizes)
        simulation = Simulation(
            way.trials, num_gpus, search.max_concurrent_trials, self._keep_from, costs, way.go_on(), has_state
        )
        outcome: Outcome = simulation.run()
        self._walked = list(outcome.walked.values())
        self.trained = outcome.trained
        more = way.extra_steps * seconds[SECOND_STAGE] * one.num_workers(SECOND_STAGE)
        self.gpu_seconds = max(0.0, outcome.gpu_seconds + more)
        self.wall_seconds = max(0.0, outcome.makespan_seconds + more / num_gpus)

    def steps(self, stage: str) -> float:
        """Distinct steps of a stage."""
        distinct = {segment.key: segment for walked in self._walked for segment in walked}
        more = self._way.extra_steps if stage == SECOND_STAGE else 0.0
        return max(0.0, sum(s.num_steps for s in distinct.values() if s.stage == stage) + more)

    @property
    def steps_asked(self) -> float:
        """Steps that trials would train, each by itself."""
        return sum(segment.num_steps for walked in self._walked for segment in walked)

    @property
    def kept(self) -> list[Segment]:
        """Where trials have ended or may have left stage one."""
        kept = {walked[-1].key: walked[-1] for walked in self._walked}
        for walked in self._walked:
            branches = (s for s in walked if s.stage == FIRST_STAGE and s.end_step >= self._keep_from)
            kept.update({segment.key: segment for segment in branches})
        return list(kept.values())

    def bytes_of(self, segments: Iterable[Segment]) -> float:
        """Of the states of segments."""
        return sum(self._times[segment.stage].state_bytes for segment in segments)
