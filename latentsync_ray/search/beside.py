"""Trials beside the search's own, which no scheduler stops: baselines, and the best ones again under other draws."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import ray

from latentsync_ray.config.recipe import Recipe
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.core.baselines import Asked, Role
from latentsync_ray.core.hashing import digest
from latentsync_ray.report.names import name_of
from latentsync_ray.report.trials import TrialResult, TrialStatus, best_first
from latentsync_ray.search.reported import Reported, with_report
from latentsync_ray.search.walk import TrialSetup, Walk

_LOOK_SECONDS = 0.5


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


def is_among(asked: Asked, trials: Iterable[TrialResult]) -> bool:
    """Whether what is asked for is there already."""
    return any(trial.role == asked.role and trial.config == asked.values for trial in trials)


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
