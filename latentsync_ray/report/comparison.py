"""Which candidates cannot be told from the best, and how much the best differs from a baseline.

Both are corrected for the choice of the best on the same data. `make coverage` measures how often they are right.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from latentsync_ray.report.samples import Floats, Samples

_NUM_DRAWS, _LEAST_DRAWS = 4000, 500
_MOST_NUMBERS = 1_000_000
"""In a table of draws and candidates; for so many candidates that it would be larger there are fewer draws."""
_NUM_OF_T = 200_000
LEVEL = 0.95
"""Of intervals, and how often the candidate that is truly the best is among those that cannot be told from it."""


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its interval."""

    estimate: float
    low: float
    high: float


def tied_with_best(samples: Samples, best: int) -> NDArray[np.bool_]:
    """(K,) whether each candidate cannot be told from the best one, itself included.

    A candidate is left out if it is further behind, in standard errors, than it would be behind the luckiest in 1 -
    LEVEL of the draws if all were equal (subset selection: Gupta 1965, On some multiple decision rules). That is
    repeated among those that are left, since what is clearly worse cannot be the luckiest (as models are eliminated
    in Hansen, Lunde and Nason 2011, The Model Confidence Set).

    Args:
        samples: Of all candidates.
        best: Index of the best one.
    """
    clip_variance = float(_variances(samples.parts - samples.parts[best]).mean())
    draws = _Draws.of(samples, samples.degrees(clip_variance, 2 * float(np.mean(samples.seed_errors**2))))
    errors, standard_errors = draws.errors(samples), samples.errors_of_differences()
    behind = _ratio(samples.means - samples.means[best], standard_errors[best])
    kept = np.arange(len(samples.means))
    while True:
        among = errors[:, kept]
        winners = kept[among.argmin(axis=1)]
        with np.errstate(invalid="ignore"):  # 0 * inf is nan: a difference without any error is not one of chance
            limits = draws.scale[:, None] * behind[kept] * standard_errors[winners][:, kept]
        further = (among - among.min(axis=1, keepdims=True) > limits).mean(axis=0)
        left = kept[(further >= 1 - LEVEL) | (behind[kept] <= 0)]
        if len(left) == len(kept):
            return np.isin(np.arange(len(samples.means)), kept)
        kept = left


def relative_difference(samples: Samples, best: int, chosen_among: NDArray[np.bool_], baseline: Samples) -> Interval:
    """How far the best candidate is from a baseline, as a share of the baseline's size.

    The lower end is that of Student's t. The upper end is further out by what the choice of the best does: in each
    draw the luckiest of all that cannot be told from it is chosen as if they were equal, and the end covers by
    how much that one looks better than it is. What is clearly worse is left out, as in generalised moment
    selection (Andrews and Soares 2010, Inference for Parameters Defined by Moment Inequalities). So each end is wrong
    in at most (1 - LEVEL) / 2 of the cases or little more, wherever the candidates lie. Shares are linearised (the
    delta method).

    Args:
        samples: Of all candidates.
        best: Index of the best one.
        chosen_among: (K,) whether each candidate cannot be told from the best and might have been chosen instead;
            true for the best.
        baseline: One candidate on the same pairs and clusters, whose mean is not 0.
    """
    kept = np.flatnonzero(chosen_among)
    candidates, best = samples[kept], int(np.searchsorted(kept, best))
    mean, size = baseline.means[0], abs(baseline.means[0])
    seed_error = baseline.seed_errors[0] / size
    shares = (candidates.means - mean) / size
    parts = (candidates.parts - (candidates.means / mean)[:, None] * baseline.parts) / size
    seed_variances = (candidates.seed_errors / size) ** 2 + seed_error**2
    standard_errors = np.sqrt(_variances(parts) + seed_variances)
    estimate, error = float(shares[best]), float(standard_errors[best])
    degrees = samples.degrees(float(_variances(parts[best])), float(seed_variances[best]))
    draws = _Draws.of(candidates, degrees)
    luckiest = draws.errors(candidates).argmin(axis=1)
    drawn = (draws.clusters * parts[luckiest]).sum(axis=1) + draws.seeds[np.arange(len(luckiest)), luckiest] / size
    drawn -= np.random.default_rng(1).normal(0, seed_error, len(luckiest))
    usual = _student(degrees, LEVEL)
    luck = np.quantile(_ratio(-drawn, standard_errors[luckiest] * draws.scale), (1 + LEVEL) / 2)
    return Interval(estimate, estimate - usual * error, estimate + max(usual, float(luck)) * error)


@dataclass(frozen=True)
class _Draws:
    """Draws with a fixed seed: the same results give the same answer.

    A draw multiplies the parts of all candidates by the same normal numbers, one for each cluster, which keeps how
    candidates go together (the Gaussian multiplier bootstrap: Chernozhukov, Chetverikov and Kato 2013, Gaussian
    approximations and multiplier bootstrap for maxima of sums, section 3).
    """

    clusters: Floats
    """(B, G) standard normal."""
    seeds: Floats
    """(B, K): errors of the means from the seeds."""
    scale: Floats
    """(B,): by how much the standard errors of a draw are off, a root of chi-square over its degrees of freedom. The
    means, by which the best is chosen, are independent of it, so that one number a draw suffices."""

    @classmethod
    def of(cls, samples: Samples, degrees: float) -> _Draws:
        """Draws for some candidates.

        Args:
            samples: The candidates.
            degrees: Degrees of freedom of the standard errors.
        """
        num_candidates, num_clusters = samples.parts.shape
        num_draws = max(_LEAST_DRAWS, min(_NUM_DRAWS, _MOST_NUMBERS // num_candidates))
        random = np.random.default_rng(0)
        clusters = random.normal(size=(num_draws, num_clusters))
        scale = np.sqrt(random.chisquare(degrees, num_draws) / degrees)
        seeds = np.broadcast_to(0.0, (num_draws, num_candidates))
        if samples.seed_errors.any():
            seeds = random.normal(size=seeds.shape) * samples.seed_errors
        return cls(clusters, seeds, scale)

    def errors(self, samples: Samples) -> Floats:
        """(B, K) errors of all means."""
        return self.clusters @ samples.parts.T + self.seeds


@cache
def _student(degrees: float, level: float) -> float:
    """The number that Student's t is within in `level` of the cases, to about half a per cent."""
    random = np.random.default_rng(0)
    drawn = random.normal(size=_NUM_OF_T) / np.sqrt(random.chisquare(degrees, _NUM_OF_T) / degrees)
    return float(np.quantile(abs(drawn), level))


def _variances(parts: Floats) -> Floats:
    return np.asarray((parts**2).sum(axis=-1))


def _ratio(differences: Floats, errors: Floats) -> Floats:
    """Differences in standard errors; those without an error are infinite, or 0 if there is no difference."""
    without = np.where(differences > 0, np.inf, 0.0)
    return np.divide(differences, errors, out=without, where=errors > 0)
