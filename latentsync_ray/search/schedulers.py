"""The trial schedulers: Ray Tune's own, with decisions journaled and replayed where they depend on arrival."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from latentsync_ray.cluster.ray_internals import set_milestones
from latentsync_ray.config.domains import Choice, Domain, Grid
from latentsync_ray.config.errors import UserError
from latentsync_ray.config.lengths import longest_trial
from latentsync_ray.config.plain import Settings
from latentsync_ray.config.recipe import Recipe
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.search.entries import Decision
from latentsync_ray.search.halving import ASHA, Arrivals, HyperBand
from latentsync_ray.search.journal import Journal
from latentsync_ray.search.population import Hold, JournaledPBT, journaled_pb2
from latentsync_ray.search.promotion import PromotingASHA
from latentsync_ray.search.reported import Reported, TuneResult
from latentsync_ray.search.suggestions import tune_domain
from latentsync_ray.search.trial import parameters, trial_number

_LENGTH = "second_stage.num_steps"


def make_scheduler(search: SearchConfig, recipe: Recipe, journal: Journal, hold: Hold) -> TrialScheduler:
    """The scheduler that a search asks for.

    FIFO decides nothing and HyperBand decides on whole cohorts, so both decide the same again by themselves; the
    others decide when a result arrives, and have a journal.

    Raises:
        UserError: The library that it needs is not installed.
    """
    settings = search.trial_scheduler
    max_t = longest_trial(search, recipe).of(settings.time_attr)
    halving: dict[str, Any] = {
        "time_attr": settings.time_attr,
        "max_t": max_t,
        "reduction_factor": settings.reduction_factor,
    }
    if settings.name == "fifo":
        return FIFOScheduler()
    if settings.name == "hyperband":
        return HyperBand(second_stage_grace=settings.second_stage_grace, **halving)
    if settings.name == "asha" and settings.promote:
        arrivals = Arrivals(settings.time_attr, settings.second_stage_grace)
        below_end = [rung for rung in settings.rungs(max_t) if rung < max_t]
        return PromotingASHA(arrivals, below_end, settings.reduction_factor, journal)
    if settings.name == "asha":
        asha = ASHA(second_stage_grace=settings.second_stage_grace, grace_period=settings.grace_period, **halving)
        if settings.rung_interval is not None:
            set_milestones(asha, settings.rungs(max_t))
        return JournaledScheduler(asha, journal)
    population: dict[str, Any] = {
        "time_attr": settings.time_attr,
        "perturbation_interval": settings.perturbation_interval,
        "quantile_fraction": settings.quantile_fraction,
        "log_config": False,
        "second_stage_grace": settings.second_stage_grace,
    }
    if settings.name == "pb2":
        if importlib.util.find_spec("sklearn") is None:
            raise UserError("trial_scheduler.name: pb2 needs scikit-learn, which is not installed; pip install it")
        bounds = {name: domain.values() for name, domain in search.param_space.items()}
        return journaled_pb2()(journal, hold, search.sampling_seed, **population, hyperparam_bounds=bounds)
    # A clone is as long as its source: where that one is now, a shorter trial would have ended.
    perturbed = {
        name: domain for name, domain in search.param_space.items() if not f"{_LENGTH}.".startswith(f"{name}.")
    }
    return JournaledPBT(
        journal,
        hold,
        search.sampling_seed,
        **population,
        resample_probability=settings.resample_probability,
        hyperparam_mutations={name: _mutation(domain) for name, domain in perturbed.items()},
        custom_explore_fn=_within(search.param_space),
    )


def _mutation(domain: Domain) -> Any:
    """What PBT perturbs: a list by going to a neighbour, a range by a factor."""
    return domain.values() if isinstance(domain, Grid | Choice) else tune_domain(domain)


def _within(param_space: Mapping[str, Domain]) -> Callable[[Settings], Settings]:
    """Brings perturbed values back into their ranges; a rule may hold only there."""

    def clip(config: Settings) -> Settings:
        return config | {name: domain.clip(config[name]) for name, domain in param_space.items()}

    return clip


class JournaledScheduler(TrialScheduler):  # type: ignore[misc]
    """A scheduler that goes on or stops, whose decisions are replayed from a journal as far as it goes."""

    def __init__(self, scheduler: TrialScheduler, journal: Journal):
        super().__init__()
        self._scheduler, self._journal = scheduler, journal

    @property
    def metric(self) -> Any:
        """The metric that the scheduler compares."""
        return self._scheduler.metric

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Hands the search's metric on."""
        return bool(self._scheduler.set_search_properties(metric, mode, **spec))

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Hands the event on."""
        self._scheduler.on_trial_add(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Hands the event on."""
        self._scheduler.on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: TuneResult) -> str:
        """The decision of before, or the scheduler's; the scheduler sees every result either way."""
        number, global_step = trial_number(trial.trial_id, trial.config), Reported.from_result(result).global_step
        decision = str(self._scheduler.on_trial_result(tune_controller, trial, result))
        values = parameters(trial.config)
        known = self._journal.lookup(number, 0, global_step, values)
        if known is None:
            self._journal.write(Decision(number, 0, global_step, values, decision))
        return known.decision if known else decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: TuneResult) -> None:
        """Hands the event on."""
        self._scheduler.on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Hands the event on."""
        self._scheduler.on_trial_remove(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """The scheduler's choice."""
        return self._scheduler.choose_trial_to_run(tune_controller)

    def debug_string(self) -> str:
        """The scheduler's own words."""
        return f"journaled {self._scheduler.debug_string()}"
