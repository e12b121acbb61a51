"""What a search is expected to take, from the fewest steps to the most that it can come to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from latentsync_ray.config.lengths import extremes
from latentsync_ray.config.recipe import FIRST_STAGE, SECOND_STAGE, Recipe
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.core.forecast import Forecast, Span, StageTimes
from latentsync_ray.core.segment import Segment
from latentsync_ray.core.trial_recipe import STAGES
from latentsync_ray.planning.scenarios import Scenario, Scenarios
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


def forecast(search: SearchConfig, recipe: Recipe, ways: Scenarios, known: Known) -> Forecast:
    """What a search takes from now on.

    Args:
        search: What is asked.
        recipe: The recipe before a trial's own values.
        ways: What it may come to.
        known: What is known.
    """
    fewest = [_Foretold(search, recipe, way, known) for way in ways.fewest]
    adapts = ways.likely is not ways.most
    likely = _Foretold(search, recipe, ways.likely, known) if adapts else fewest[0]
    most = _Foretold(search, recipe, ways.most, known) if adapts else fewest[0]

    def span(figure: Callable[[_Foretold], float]) -> Span:
        figures = [figure(one) for one in (*fewest, likely, most)]
        return Span(min(figures), figure(likely), max(figures))

    timed = {segment.stage for one in (*fewest, most) for segment in one.trained} <= known.times.keys()
    hours = span(lambda one: one.gpu_seconds / _HOUR) if timed else None
    return Forecast(
        trials=len(ways.most.trials),
        steps=span(lambda one: one.steps(*STAGES)),
        first_stage_steps=span(lambda one: one.steps(FIRST_STAGE)),
        second_stage_steps=span(lambda one: one.steps(SECOND_STAGE)),
        steps_without_sharing=span(lambda one: one.steps_asked),
        steps_stored=None if known.stored is None else sum(segment.num_steps for segment in most.stored),
        first_stage_seconds=most.step_seconds.get(FIRST_STAGE),
        second_stage_seconds=most.step_seconds.get(SECOND_STAGE),
        gpu_hours=hours,
        wall_hours=span(lambda one: one.wall_seconds / _HOUR) if timed else None,
        price=None if hours is None or known.gpu_price is None else hours.times(known.gpu_price),
        bytes_written=span(lambda one: one.bytes_of(one.trained)) if timed else None,
        bytes_kept=span(lambda one: one.bytes_of(one.kept)) if timed else None,
    )


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

    def steps(self, *stages: str) -> float:
        """Distinct steps of stages."""
        distinct = {segment.key: segment for walked in self._walked for segment in walked}
        more = self._way.extra_steps if SECOND_STAGE in stages else 0.0
        return max(0.0, sum(segment.num_steps for segment in distinct.values() if segment.stage in stages) + more)

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
