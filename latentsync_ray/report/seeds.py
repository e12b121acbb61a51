"""How much a candidate's metric differs from seed to seed."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latentsync_ray.report.samples import Floats


@dataclass(frozen=True)
class SeedVariance:
    """An estimate of the variance of one training from seed to seed."""

    variance: float = 0.0
    degrees: int = 0
    """Degrees of freedom; 0 where no candidate has several seeds, so that nothing is known of it."""

    def errors(self, counts: NDArray[np.intp]) -> Floats:
        """Standard errors of means over so many seeds each."""
        return np.sqrt(self.variance / counts)


@dataclass(frozen=True)
class SeedSpread:
    """What chance does to trainings of the same values, pooled over candidates as if it did the same to all."""

    between: SeedVariance
    """For comparing candidates: without what a seed does to all of them, if all have the same seeds."""
    alone: SeedVariance
    """For comparing with a training that has other seeds."""

    @classmethod
    def of(cls, metrics: Sequence[Mapping[Hashable, float]]) -> SeedSpread:
        """Estimates it from the metric of each candidate by seed.

        The variances are those of the residuals of an analysis of variance, one way (candidates), and two ways
        (candidates and seeds) where each candidate has each seed.
        """
        several = [np.array(list(by_seed.values())) for by_seed in metrics if len(by_seed) > 1]
        degrees = sum(len(values) - 1 for values in several)
        if not degrees:
            return cls(SeedVariance(), SeedVariance())
        alone = SeedVariance(sum(float(((v - v.mean()) ** 2).sum()) for v in several) / degrees, degrees)
        if len(metrics) < 2 or any(set(by_seed) != set(metrics[0]) for by_seed in metrics):
            return cls(alone, alone)
        table = np.array([[by_seed[seed] for seed in metrics[0]] for by_seed in metrics])
        residuals = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
        degrees = (len(table) - 1) * (table.shape[1] - 1)
        return cls(SeedVariance(float((residuals**2).sum()) / degrees, degrees), alone)
