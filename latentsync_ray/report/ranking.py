"""Candidates of a search, compared pair by pair by their stored terms."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from latentsync_ray.config.recipe import Recipe
from latentsync_ray.config.search import SEEDS, SearchConfig
from latentsync_ray.core.baselines import BASELINES, Role
from latentsync_ray.report.answer import Difference
from latentsync_ray.report.candidates import (
    Candidate,
    best_candidate,
    candidates,
    has_result,
    without_seeds,
)
from latentsync_ray.report.comparison import Interval, relative_difference, tied_with_best
from latentsync_ray.report.pairs import Pairs, TermsOf
from latentsync_ray.report.samples import Samples
from latentsync_ray.report.seeds import SeedSpread, SeedVariance
from latentsync_ray.report.trials import TrialResult


@dataclass(frozen=True)
class Ranking:
    """What the trials of a search say about its candidates."""

    candidates: Sequence[Candidate]
    """All that have a result."""
    best: int
    """Index of the best."""
    tied: Sequence[int]
    """Indices of those that cannot be told from it, itself included; it alone where terms are not stored."""
    baselines: Mapping[Role, Candidate]
    """Those that ran to their ends."""
    differences: Mapping[Role, Difference]
    """Against each of them whose terms are stored."""
    num_pairs: int = 0
    """By which candidates were compared; 0 where terms are not stored."""
    num_clips: int = 0
    """That these are from."""
    num_groups: int = 0
    """That the clips are from."""
    why_unsure: str = ""
    """Why nothing is known of how sure this is; empty where it is known."""


def rank(search: SearchConfig, recipe: Recipe, trials: Sequence[TrialResult], terms_of: TermsOf) -> Ranking | None:
    """Compares the candidates of a search; None if there are none.

    Args:
        search: What was asked.
        recipe: The recipe before a trial's own values.
        trials: All of them, baselines included.
        terms_of: The stored terms.
    """
    found = candidates(search, trials)
    best = best_candidate(search, found)
    if best is None:
        return None
    baselines = _baselines(search, trials, found, found[best])
    pairs = Pairs(search, recipe, terms_of)
    rows = [pairs.mean(candidate) for candidate in found]
    values, clusters = [row for row in rows if row is not None], pairs.clusters
    if len(values) < len(rows) or clusters is None:
        why = "too few clips are held out" if len(values) == len(rows) else "validation terms are not stored"
        return Ranking(found, best, (best,), baselines, {}, why_unsure=why)
    spread = SeedSpread.of([_by_seed(search, candidate) for candidate in found])
    samples = Samples.of(np.stack(values), clusters)
    tied = tied_with_best(_with_seeds(samples, spread.between, found), best)
    comparable = _with_seeds(samples, spread.alone, found)
    chosen_among = tied & np.array([candidate.is_confirmed == found[best].is_confirmed for candidate in found])
    differences = {}
    for role, baseline in baselines.items():
        row = pairs.mean(baseline)
        if baseline is found[best]:
            differences[role] = Difference(0.0, 0.0, 0.0)
        elif row is not None and row.mean() != 0:
            other = _with_seeds(Samples.of(row[None], clusters), spread.alone, [baseline])
            interval = relative_difference(comparable, best, chosen_among, other)
            differences[role] = _difference(search, interval)
    sizes = len(clusters), pairs.num_clips, pairs.num_groups
    return Ranking(found, best, tuple(np.flatnonzero(tied).tolist()), baselines, differences, *sizes)


def _baselines(
    search: SearchConfig, trials: Sequence[TrialResult], found: Sequence[Candidate], best: Candidate
) -> dict[Role, Candidate]:
    """The baselines that ran to their ends, under the best candidate's seeds if they were trained under these.

    One that is also among the candidates is that candidate.
    """
    owners = {trial.key: candidate for candidate in found for trial in candidate.all_trials}
    seeds = {_seed(trial) for trial in best.trials}
    made = {}
    for role in BASELINES:
        ran = [trial for trial in trials if trial.role == role and has_result(search, trial)]
        alike = [trial for trial in ran if _seed(trial) in seeds] or ran
        if alike:
            one = alike[0]
            own = Candidate(without_seeds(one.config), one.number, tuple(alike), tuple(ran))
            made[role] = owners.get(one.key, own)
    return made


def _seed(trial: TrialResult) -> Hashable:
    return tuple(str(trial.config.get(name)) for name in SEEDS)


def _by_seed(search: SearchConfig, candidate: Candidate) -> dict[Hashable, float]:
    return {_seed(trial): trial.metrics[search.metric] for trial in candidate.trials}


def _with_seeds(samples: Samples, seeds: SeedVariance, found: Sequence[Candidate]) -> Samples:
    errors = seeds.errors(np.array([len(candidate.trials) for candidate in found]))
    return replace(samples, seed_errors=errors, seed_degrees=seeds.degrees)


def _difference(search: SearchConfig, interval: Interval) -> Difference:
    """Of an interval on a scale on which less is better."""
    if search.mode == "min":
        return Difference(interval.estimate, interval.low, interval.high)
    return Difference(-interval.estimate, -interval.high, -interval.low)
