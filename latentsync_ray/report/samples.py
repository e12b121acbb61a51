"""Means of candidates over the same pairs of a validation sample and its noise, and how uncertain these are."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Samples:
    """Candidates on the same pairs. Less is better.

    Pairs of one clip, and clips of one speaker, are not independent, so that clusters of pairs are what is counted.
    With G clusters the error of a mean is a sum of G independent parts, one of each cluster: the cluster-robust
    variance with the factor G / (G - 1), and Student's t with G - 1 degrees of freedom (Cameron and Miller 2015, A
    Practitioner's Guide to Cluster-Robust Inference, section VI for few clusters). For a mean over clusters of equal
    size that is the usual variance of the clusters' means.
    """

    means: Floats
    """(K,) of each candidate over its pairs."""
    parts: Floats
    """(K, G): what each cluster adds to the error of a mean; the squares of a row add up to its variance."""
    seed_errors: Floats
    """(K,) standard error of each mean since other seeds would give another one; 0 where that is not known."""
    seed_degrees: int
    """Degrees of freedom of the seeds' errors; 0 where nothing is known of them."""

    @classmethod
    def of(
        cls,
        values: Floats,
        clusters: Sequence[Hashable],
        seed_errors: Floats | None = None,
        seed_degrees: int = 0,
    ) -> Samples:
        """Sums up K candidates on N pairs.

        Args:
            values: (K, N); less is better.
            clusters: Of each pair, at least two in all.
            seed_errors: (K,); None for zeros.
            seed_degrees: Degrees of freedom of these.
        """
        numbers = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
        num_clusters = len(numbers)
        assert num_clusters > 1 and values.shape[1] == len(clusters)
        membership = np.zeros((len(clusters), num_clusters))
        membership[np.arange(len(clusters)), [numbers[name] for name in clusters]] = 1
        means = values.mean(axis=1)
        sums = (values - means[:, None]) @ membership / values.shape[1]
        parts = sums * np.sqrt(num_clusters / (num_clusters - 1))
        return cls(means, parts, np.zeros(len(values)) if seed_errors is None else seed_errors, seed_degrees)

    def __getitem__(self, chosen: NDArray[np.intp]) -> Samples:
        """Some of the candidates."""
        return Samples(self.means[chosen], self.parts[chosen], self.seed_errors[chosen], self.seed_degrees)

    def degrees(self, clip_variance: float, seed_variance: float) -> float:
        """Degrees of freedom of a variance that is the sum of these two estimates.

        Welch 1947, The generalization of Student's problem when several different population variances are involved.
        """
        of_clips = float(self.parts.shape[1] - 1)
        if seed_variance == 0 or self.seed_degrees == 0:
            return of_clips
        parts = clip_variance**2 / of_clips + seed_variance**2 / self.seed_degrees
        return float((clip_variance + seed_variance) ** 2 / parts)

    def errors_of_differences(self) -> Floats:
        """(K, K) standard errors of the differences between candidates' means."""
        products = self.parts @ self.parts.T
        own = np.diag(products)
        both = own[:, None] + own
        variances = both - 2 * products
        variances[variances < 1e-12 * both] = 0  # what rounding has left
        seeds = self.seed_errors**2
        return np.sqrt(variances + np.where(np.eye(len(own), dtype=bool), 0, seeds[:, None] + seeds))
