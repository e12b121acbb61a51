"""`make truth`: what adaptive searches find, held against a grid that has been trained whole.

The grid (thresholds, learning rates, two training seeds; search_spaces/truth.yaml) fills a store, all its trials at
equal cost. S is the set of a seed's trials that cannot be told from its best. Then ASHA, Optuna and PBT search the
grid's values, 20 times each with other draws, and find in the store what they ask for; only PBT, which changes values
on the way, has something left to train. Everything is kept: the same command goes on.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import matplotlib.pyplot as plt
from rich.console import Console
from rich.progress import track
from rich.table import Table

from latentsync_ray.api import Search
from latentsync_ray.cluster.connection import cluster
from latentsync_ray.config.plain import Plain
from latentsync_ray.config.searchfiles import load_search
from latentsync_ray.report.candidates import has_result
from latentsync_ray.report.pairs import TermsOf, stored_terms
from latentsync_ray.report.ranking import Ranking, rank
from latentsync_ray.report.results import Results, find_results
from latentsync_ray.report.trials import TrialResult

SPACE = "search_spaces/truth.yaml"
NUM_SEARCHES = 20
# A rung 20 steps of stage two after each threshold, and every 40 steps from there on.
ASHA: Mapping[str, Plain] = {
    "name": "asha",
    "time_attr": "cost",
    "grace_period": 60,
    "second_stage_grace": 20,
    "rung_interval": 40,
    "reduction_factor": 4,
}
METHODS: Mapping[str, Mapping[str, Plain]] = {
    # One that promotes: the first to come to a rung pass it for want of others in ASHA that only stops.
    "ASHA": {"num_samples": 15, "search_alg": "maximin", "trial_scheduler": {**ASHA, "promote": True}},
    "Optuna": {"num_samples": 12, "search_alg": "optuna", "max_concurrent_trials": 3, "trial_scheduler": {**ASHA}},
    "PBT": {
        "num_samples": 4,
        "trial_scheduler": {
            "name": "pbt",
            "time_attr": "cost",
            "second_stage_grace": 20,
            "perturbation_interval": 20,
        },
    },
}


@dataclass(frozen=True)
class Grid:
    """All trials of one training seed."""

    search: Search
    """What has trained it."""
    trials: Sequence[TrialResult]
    """Those that have diverged included."""
    terms_of: TermsOf

    @property
    def segments(self) -> dict[str, int]:
        """Key -> steps of each distinct segment."""
        return {key: steps for trial in self.trials for key, steps in trial.asked.items()}

    @property
    def best(self) -> float:
        """The best final metric."""
        config = self.search.config
        return min(trial.metrics[config.metric] for trial in self.trials if has_result(config, trial))

    def ranking(self) -> Ranking:
        """Its candidates, and S."""
        return _ranking(self.search, self.trials, self.terms_of)

    def cannot_tell(self, search: Search, choice: TrialResult) -> bool:
        """Whether a search's choice cannot be told from the best; one that is no trial of the grid is added to it."""
        number = len(self.trials)
        ranking = _ranking(search, [*self.trials, replace(choice, number=number)], self.terms_of)
        tied = (ranking.candidates[index] for index in ranking.tied)
        return any(number in candidate.searched for candidate in tied)


def _ranking(search: Search, trials: Sequence[TrialResult], terms_of: TermsOf) -> Ranking:
    ranking = rank(search.config, search.recipe, trials, terms_of)
    if ranking is None or ranking.why_unsure:
        raise SystemExit(f"nothing can be compared: {ranking.why_unsure if ranking else 'no trial has ended'}")
    return ranking


@dataclass(frozen=True)
class Outcome:
    """What one search over a grid's values has come to."""

    in_s: bool
    """Whether its choice cannot be told from the grid's best."""
    regret: float
    """By which share its choice's metric is above that of the grid's best."""
    share: float
    """Distinct steps that it has asked for, as a share of the grid's."""
    steps_outside: int
    """Of these, how many are not the grid's."""


def read_search(values: Mapping[str, Plain]) -> Search:
    """A search over the grid's store, with the command's own arguments."""
    return Search(*load_search(SPACE, sys.argv[1:], values))


def run(search: Search) -> Results:
    """Runs a search to its end."""
    results = search.run()
    if results.exit_status != 0:
        raise SystemExit(f"{results.folder}: exit status {results.exit_status}")
    return results


def train_grid() -> dict[int, Grid]:
    """Training seed -> its part of the grid, trained or found."""
    search = read_search({})
    results = run(search)
    store, _ = find_results(results.folder)
    terms_of = cache(stored_terms(store))
    seeds = search.config.param_space["seed"].values()
    return {seed: Grid(search, [t for t in results if t.config["seed"] == seed], terms_of) for seed in seeds}


def values_of(method: str, draw: int, seed: int) -> dict[str, Plain]:
    """What a search over the grid's values differs in from the grid."""
    grid, _ = load_search(SPACE)
    space: dict[str, Plain] = {
        name: {"choice": domain.values()} for name, domain in grid.param_space.items() if name != "seed"
    }
    own: dict[str, Plain] = {"name": f"truth-{method.lower()}", "sampling_seed": draw, **METHODS[method]}
    if method == "PBT":  # a population may not search the seed, not even over one value
        return {**own, "seed": seed, "param_space": space}
    return {**own, "param_space": {**space, "seed": {"choice": [seed]}}}


def replay(method: str, draw: int, seed: int, grid: Grid) -> Outcome:
    """One search over the grid's values."""
    search = read_search(values_of(method, draw, seed))
    with contextlib.redirect_stdout(io.StringIO()):
        results = run(search)
    choice, segments = results.get_best_result(), grid.segments
    asked = {key: steps for trial in results for key, steps in trial.asked.items()}
    return Outcome(
        in_s=grid.cannot_tell(search, choice),
        regret=choice.metrics[search.config.metric] / grid.best - 1,
        share=sum(asked.values()) / sum(segments.values()),
        steps_outside=sum(steps for key, steps in asked.items() if key not in segments),
    )


def draw_picture(outcomes: Mapping[str, Sequence[Outcome]]) -> None:
    """Regret against the share of the grid's steps, a point a search; filled where the choice lies in S."""
    figure, axes = plt.subplots(figsize=(7, 4))
    for number, (method, found) in enumerate(outcomes.items()):
        colour = f"C{number}"
        for in_s, face in ((True, colour), (False, "none")):
            drawn = [one for one in found if one.in_s == in_s]
            points = [one.share for one in drawn], [100 * one.regret for one in drawn]
            axes.scatter(*points, label=method if in_s else None, edgecolors=colour, facecolors=face, alpha=0.7)
    axes.axvline(0.25, color="grey", linestyle=":")
    axes.set_xlabel("share of the grid's distinct steps")
    axes.set_ylabel("regret against the grid's best, %")
    axes.legend(title="filled: cannot be told\nfrom the grid's best")
    figure.tight_layout()
    figure.savefig("docs/regret.png", dpi=110)


def main() -> None:
    """Trains the grid, searches it, and prints what was found."""
    with cluster():
        grids = train_grid()
        for seed, grid in grids.items():
            ranking = grid.ranking()
            names = (str(dict(ranking.candidates[index].values)) for index in ranking.tied)
            print(f"training seed {seed}: {len(ranking.tied)} of {len(grid.trials)} in S:", *names, sep="\n  ")
        seeds = list(grids)
        outcomes = {
            method: [
                replay(method, draw, seed := seeds[draw % len(seeds)], grids[seed])
                for draw in track(range(NUM_SEARCHES), method, console=Console(stderr=True))
            ]
            for method in METHODS
        }
    table = Table(title=f"{NUM_SEARCHES} searches each, held against the grid of their training seed")
    for column in ("", "choice in S", "regret, median", "worst", "steps, median", "most", "steps not in the grid"):
        table.add_column(column, justify="right")
    for method, found in outcomes.items():
        regrets, shares = [one.regret for one in found], [one.share for one in found]
        table.add_row(
            method,
            f"{sum(one.in_s for one in found)} of {len(found)}",
            f"{statistics.median(regrets):.2%}",
            f"{max(regrets):.2%}",
            f"{statistics.median(shares):.1%}",
            f"{max(shares):.1%}",
            str(sum(one.steps_outside for one in found)),
        )
    Console(width=110).print(table)
    draw_picture(outcomes)


if __name__ == "__main__":
    main()
