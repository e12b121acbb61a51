"""The trial schedulers: Ray Tune's own, with decisions journaled and replayed where they depend on arrival."""

from __future__ import annotations

import importlib.util
import json
import random
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ray.train._internal.session import _TrainingResult  # what Ray Tune's own schedulers hand to a trial
from ray.tune import Checkpoint
from ray.tune.schedulers import FIFOScheduler, PopulationBasedTraining, TrialScheduler

from latentsync_ray.config.domains import Choice, Domain, Grid
from latentsync_ray.config.errors import UserError
from latentsync_ray.config.lengths import longest_trial
from latentsync_ray.config.recipe import SECOND_STAGE, Recipe
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.core.hashing import digest
from latentsync_ray.core.segment import Segment
from latentsync_ray.search.halving import ASHA, HyperBand
from latentsync_ray.search.journal import Decision, Exploit, Journal
from latentsync_ray.search.promotion import PromotingASHA
from latentsync_ray.search.suggestions import tune_domain
from latentsync_ray.search.trial import POINTER, parameters, trial_name, trial_number

_THRESHOLD = "transition.at_step"
_LENGTH = "second_stage.num_steps"
Hold = Callable[[str, str], None]
"""Asks for the state of a segment to be kept for a trial: its name and the segment's key."""


def make_scheduler(search: SearchConfig, recipe: Recipe, journal: Journal, hold: Hold) -> TrialScheduler:
    """The scheduler that a search asks for.

    FIFO decides nothing and HyperBand decides on whole cohorts, so both decide the same again by themselves; the
    others decide when a result arrives, and have a journal.

    Raises:
        UserError: The library that it needs is not installed.
    """
    settings = search.trial_scheduler
    halving: dict[str, Any] = {
        "time_attr": settings.time_attr,
        "max_t": longest_trial(search, recipe).of(settings.time_attr),
        "reduction_factor": settings.reduction_factor,
    }
    if settings.name == "fifo":
        return FIFOScheduler()
    if settings.name == "hyperband":
        return HyperBand(**halving)
    if settings.name == "asha" and settings.promote:
        return PromotingASHA(**halving, grace_period=settings.grace_period, journal=journal)
    if settings.name == "asha":
        return JournaledScheduler(ASHA(**halving, grace_period=settings.grace_period), journal)
    population: dict[str, Any] = {
        "time_attr": settings.time_attr,
        "perturbation_interval": settings.perturbation_interval,
        "quantile_fraction": settings.quantile_fraction,
        "log_config": False,
    }
    if settings.name == "pb2":
        if importlib.util.find_spec("sklearn") is None:
            raise UserError("trial_scheduler.name: pb2 needs scikit-learn, which is not installed; pip install it")
        bounds = {name: domain.values() for name, domain in search.param_space.items()}
        return _journaled_pb2()(journal, hold, search.sampling_seed, **population, hyperparam_bounds=bounds)
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


def _within(param_space: dict[str, Domain]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Brings perturbed values back into their ranges; a rule may hold only there."""

    def clip(config: dict[str, Any]) -> dict[str, Any]:
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

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """The decision of before, or the scheduler's; the scheduler sees every result either way."""
        number, global_step = trial_number(trial.trial_id, trial.config), result["global_step"]
        decision = str(self._scheduler.on_trial_result(tune_controller, trial, result))
        values = parameters(trial.config)
        known = self._journal.lookup(number, 0, global_step, values)
        if known is None:
            self._journal.write(Decision(number, 0, global_step, values, decision))
        return known.decision if known else decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
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


class _JournaledExploits:
    """Adds a journal to a population-based scheduler of Ray Tune, which is the next class in line.

    A checkpoint is a trial's pointer, so an exploit copies no weights. Which trial is cloned and what is perturbed
    is drawn from a generator seeded by the place at which it happens, not by what was drawn before.
    """

    def __init__(self, journal: Journal, hold: Hold, seed: int, **settings: Any):
        super().__init__(**settings)
        self._journal, self._hold, self._seed = journal, hold, seed
        self._generations: Counter[int] = Counter()
        self._made: Exploit | None = None

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """What was decided before, or what the scheduler decides now."""
        number = trial_number(trial.trial_id, trial.config)
        generation, global_step = self._generations[number], result["global_step"]
        values = parameters(trial.config)
        known = self._journal.lookup(number, generation, global_step, values)
        if known is not None:
            return self._decide_again(tune_controller, trial, result, known)
        self._made = None
        seed = int(digest([self._seed, number, generation, global_step])[:8], 16)
        random.seed(seed)
        np.random.seed(seed)
        decision = str(super().on_trial_result(tune_controller, trial, result))  # type: ignore[misc]
        self._journal.write(Decision(number, generation, global_step, values, decision, self._made))
        if self._made is not None:
            self._generations[number] += 1
        return decision

    def _decide_again(self, tune_controller: Any, trial: Any, result: dict[str, Any], known: Decision) -> str:
        """Makes a journaled decision, and leaves the scheduler as if it had been its own."""
        state: Any = self._trial_state[trial]  # type: ignore[attr-defined]
        time = result[self._time_attr]  # type: ignore[attr-defined]
        exploit = known.exploit
        if time - state.last_perturbation_time >= self._perturbation_interval:  # type: ignore[attr-defined]
            self._save_trial_state(state, time, result, trial)  # type: ignore[attr-defined]
            state.last_perturbation_time = time
            if exploit is None:  # any trial may be the one that is cloned when decisions are new again
                state.last_checkpoint = tune_controller._schedule_trial_save(trial, result=result)
        if exploit is None:
            return str(TrialScheduler.CONTINUE)
        self._generations[known.trial] += 1
        self._hold(trial_name(trial.trial_id, trial.config), exploit.key)
        tune_controller.pause_trial(trial, should_checkpoint=False)
        trial.set_config({**trial.config, **exploit.parameters})
        trial.run_metadata.checkpoint_manager._latest_checkpoint_result = _TrainingResult(
            _write_checkpoint(trial.storage, exploit.pointer), dict(result)
        )
        state.last_checkpoint = None
        state.last_train_time, state.last_perturbation_time = exploit.last_train_time, exploit.last_perturbation_time
        return str(TrialScheduler.NOOP)

    def _exploit(self, tune_controller: Any, trial: Any, trial_to_clone: Any) -> None:
        """Clones a better trial, and notes what is needed to do it again."""
        super()._exploit(tune_controller, trial, trial_to_clone)  # type: ignore[misc]
        state: Any = self._trial_state[trial]  # type: ignore[attr-defined]
        source: Any = self._trial_state[trial_to_clone]  # type: ignore[attr-defined]
        pointer = _read_checkpoint(source.last_checkpoint)
        key = Segment(**pointer["last"]).key
        self._hold(
            trial_name(trial.trial_id, trial.config), key
        )  # the source may move on before the clone asks for what follows
        if pointer["last"]["stage"] == SECOND_STAGE and _THRESHOLD in trial.config:
            # The clone has left stage one where its source did, whatever was drawn for it.
            trial.set_config({**trial.config, _THRESHOLD: pointer["last"]["stage_start_step"]})
        self._made = Exploit(
            source=trial_number(trial_to_clone.trial_id, trial_to_clone.config),
            key=key,
            parameters=parameters(trial.config),
            pointer=pointer,
            last_train_time=state.last_train_time,
            last_perturbation_time=state.last_perturbation_time,
        )


class JournaledPBT(_JournaledExploits, PopulationBasedTraining):  # type: ignore[misc]
    """Population based training (Jaderberg et al. 2017), Ray Tune's, with a journal."""


def _journaled_pb2() -> Any:
    """Population based bandits (Parker-Holder et al. 2020), Ray Tune's, with a journal."""
    from ray.tune.schedulers.pb2 import PB2  # scikit-learn takes seconds, and may not be there

    return type("JournaledPB2", (_JournaledExploits, PB2), {})


def _read_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    with checkpoint.as_directory() as folder:
        pointer: dict[str, Any] = json.loads((Path(folder) / POINTER).read_text(encoding="utf-8"))
    return pointer


def _write_checkpoint(storage: Any, pointer: dict[str, Any]) -> Checkpoint:
    """A checkpoint beside the trial's own, where every node finds it."""
    filesystem, folder = storage.storage_filesystem, f"{storage.trial_fs_path}/replayed-{uuid.uuid4().hex}"
    filesystem.create_dir(folder, recursive=True)
    with filesystem.open_output_stream(f"{folder}/{POINTER}") as stream:
        stream.write(json.dumps(pointer).encode())
    return Checkpoint(path=folder, filesystem=filesystem)
