"""Trials beside the search's own, which no scheduler stops: baselines, and the best ones again under other draws."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import ray

from latentsync_ray.config.domains import Grid
from latentsync_ray.config.length import first_stage_steps
from latentsync_ray.config.lengths import extremes, has_fixed_second_stage, longest_trial
from latentsync_ray.config.plain import Settings, plain
from latentsync_ray.config.recipe import Recipe
from latentsync_ray.config.search import SEEDS, SearchConfig
from latentsync_ray.core.hashing import digest
from latentsync_ray.report.trials import Role, TrialResult, TrialStatus, best_first
from latentsync_ray.search.reported import Reported, with_report
from latentsync_ray.search.trial import name_of
from latentsync_ray.search.walk import TrialSetup, Walk

_THRESHOLD = "transition.at_step"
_LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Asked:
    """A trial that is to be trained beside the search's own."""

    role: Role
    """Why."""
    values: Settings
    """Its own values of the recipe, by dotted name."""

    def is_in(self, trials: Iterable[TrialResult]) -> bool:
        """Whether it is among trials."""
        return any(trial.role == self.role and trial.config == self.values for trial in trials)


def baselines(search: SearchConfig, recipe: Recipe, shipped: Recipe) -> list[Asked]:
    """What the best trial of a search is compared with, for each seed of the space.

    Args:
        search: Those that do not share, or that go on from a segment, have no baselines.
        recipe: The recipe before a trial's own values.
        shipped: The recipe as its files have it, whose transition policy is a baseline.
    """
    if not (search.baselines and search.share) or search.start_from is not None:
        return []
    every = recipe.first_stage.report_every_steps
    whole = None if has_fixed_second_stage(search) else first_stage_steps(recipe)
    never: Settings = {"transition.plateau": None, "transition.below": None, _THRESHOLD: None}
    if whole is None:
        longest = longest_trial(search, recipe)
        whole = longest.first_stage + longest.second_stage
        never |= {"length": {"steps": whole}, "second_stage.num_steps": None}
    # Beyond the last boundary, so that the policy never has a say.
    kinds = {Role.NEVER: never | {"transition.max_step": (whole // every + 1) * every}}
    if _THRESHOLD in search.param_space:
        kinds[Role.FIRST] = {_THRESHOLD: extremes(search, recipe, _THRESHOLD)[0]}
    own = {f.name: getattr(shipped.transition, f.name) for f in fields(shipped.transition)}
    kinds[Role.SHIPPED] = {
        f"transition.{name}": plain(value) for name, value in own.items() if value != getattr(recipe.transition, name)
    }
    space = search.param_space.items()
    seeds = {name: domain.listed for name, domain in space if name in SEEDS and isinstance(domain, Grid)}
    draws = [dict(zip(seeds, values, strict=True)) for values in itertools.product(*seeds.values())]
    return [Asked(role, {**values, **draw}) for role, values in kinds.items() for draw in draws]


def confirmations(
    search: SearchConfig, recipe: Recipe, trials: Iterable[TrialResult], compared: Iterable[Asked]
) -> list[Asked]:
    """The best trials of a search again under other draws, and the baselines that depend on these draws.

    Args:
        search: Says how many, under how many seeds, and from where on.
        recipe: The recipe before a trial's own values.
        trials: What became of the search's trials.
        compared: The baselines.
    """
    confirm = search.confirm
    best = best_first(search, trials)[: confirm.top]
    if not best:
        return []
    again = [Asked(Role.CONFIRMING, dict(trial.config)) for trial in best]
    again += [baseline for baseline in compared if confirm.whole or baseline.role != Role.NEVER]
    seed = "seed" if confirm.whole else "second_stage.seed"
    draws = [{seed: recipe.seed + number} for number in range(1, confirm.seeds + 1)]
    return [Asked(asked.role, {**asked.values, **draw}) for asked in again for draw in draws]


def num_beside(search: SearchConfig, compared: Sequence[Asked]) -> int:
    """How many trials there will be beside the search's own, at most."""
    again = search.confirm.top + len(compared) if search.confirm.top else 0
    return len(compared) + again * search.confirm.seeds


class TrialsBeside:
    """Goes through trials in threads of this process, since nothing is computed here.

    Args:
        setup: What all trials of the search have in common.
        engine: The engine's actor.
        keep: Is given what becomes of each trial, in its thread.
    """

    def __init__(self, setup: TrialSetup, engine: Any, keep: Callable[[TrialResult], None]):
        self._setup, self._engine, self._keep = setup, engine, keep
        self._threads: list[threading.Thread] = []
        self._errors: list[Exception] = []

    def start(self, asked: Iterable[Asked], first_number: int) -> None:
        """Begins trials, which have numbers from the first one on."""
        for number, trial in enumerate(asked, first_number):
            known = TrialResult(number, trial.values, role=trial.role)
            self._keep(known)
            # A daemon's thread waits for the engine no longer than the process lives.
            thread = threading.Thread(target=self._go_through, args=(known,), name=name_of(number), daemon=True)
            self._threads.append(thread)
            thread.start()

    def wait(self, look: Callable[[], object]) -> None:
        """Waits until all have ended.

        Args:
            look: Is called now and then meanwhile.
        """
        for thread in self._threads:
            while thread.is_alive():
                look()
                thread.join(timeout=_LOOK_SECONDS)
        self._threads.clear()
        for error in self._errors:
            raise error

    def _go_through(self, known: TrialResult) -> None:
        try:
            identity = f"{known.role}-{digest(dict(known.config))[:16]}"
            walk = Walk(self._setup, self._engine, name_of(known.number), known.config, identity)
            while known.status == TrialStatus.RUNNING:
                known = _after(known, walk.step())
                self._keep(known)
            walk.end()
        except ray.exceptions.RayActorError:
            pass  # the engine has ended, and with it the search: the trial is as it was
        except Exception as error:
            self._errors.append(error)


def _after(known: TrialResult, reported: Reported) -> TrialResult:
    """The trial after a report, and what has become of it if this was its last."""
    reached = reported.boundary
    known = with_report(known, reported, (*known.results, reached) if reached else known.results)
    if known.status == TrialStatus.RUNNING and reached is None:
        return replace(known, status=TrialStatus.UNFINISHED)  # a budget has ended the search
    if known.status == TrialStatus.RUNNING and reached is not None and reached.at_end:
        return replace(known, status=TrialStatus.FINISHED)
    return known
