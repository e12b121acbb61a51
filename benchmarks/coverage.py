"""`make coverage`: how often the intervals of a search hold the truth, in experiments whose truth is known.

An experiment has the demo's numbers: 13 to 20 trials and a baseline on held-out speakers with two clips each, every
clip at two timesteps. Speakers, clips and timesteps differ in difficulty, and trials differ by what they are truly
worth, by how they get on with a speaker and a clip (trials of one threshold or of one learning rate alike), and by
noise. The best trial is chosen by its mean and compared with the baseline on the same data. The truth is what the two
would differ by on all speakers there could be.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from latentsync_ray.report.comparison import relative_difference, tied_with_best
from latentsync_ray.report.samples import Floats, Samples

NUM_EXPERIMENTS = 200
NUM_CLIPS, NUM_TIMESTEPS = 2, 2
"""Of a speaker, and of a clip."""
NUM_SPEAKERS = (3, 6, 12)
SPEAKER, CLIP, NOISE = 0.02, 0.015, 0.015
"""Standard deviations, as shares of the metric, of how a trial gets on with a speaker and a clip, and of the rest."""

Random = np.random.Generator
TRUTHS: dict[str, Callable[[Random, int], Floats]] = {
    "all trials are equal": lambda random, count: np.zeros(count),
    "differ by about 0.5 %": lambda random, count: random.normal(0, 0.005, count),
    "differ by about 1 %": lambda random, count: random.normal(0, 0.01, count),
    "differ by about 2 %": lambda random, count: random.normal(0, 0.02, count),
    "differ by about 5 %": lambda random, count: random.normal(0, 0.05, count),
    "better the nearer to the middle of a grid": lambda random, count: _bowl(count),
    "two are better by 10 %": lambda random, count: np.where(np.arange(count) < 2, -0.1, 0),
    "one is better by 10 %": lambda random, count: np.where(np.arange(count) < 1, -0.1, 0),
}
"""What trials are truly worth, as shares; the baseline comes last."""


def _bowl(count: int) -> Floats:
    threshold, rate = np.arange(count) % 4, np.arange(count) // 4
    return np.append((0.01 * (threshold - 2) ** 2 + 0.02 * (rate - 1) ** 2)[:-1], 0.03)


@dataclass(frozen=True)
class Experiment:
    """What is measured, and what is true."""

    values: Floats
    """(K + 1, N): trials, and last the baseline, on N pairs."""
    speakers: list[int]
    """Of each pair."""
    worth: Floats
    """(K + 1,) by which share each differs from nothing."""


def experiment(random: Random, num_speakers: int, truth: str) -> Experiment:
    """One experiment."""
    count = int(random.integers(13, 21)) + 1
    worth = TRUTHS[truth](random, count)
    shape = (num_speakers, NUM_CLIPS, NUM_TIMESTEPS)
    difficulty = np.exp(random.normal(0, 0.25, (num_speakers, 1, 1)) + random.normal(0, 0.15, (*shape[:2], 1)))
    difficulty = difficulty * np.linspace(0.6, 1.4, NUM_TIMESTEPS)
    effects = 1 + worth[:, None, None, None]
    effects = effects + SPEAKER * _alike(random, count, (num_speakers, 1, 1))
    effects = effects + CLIP * _alike(random, count, (*shape[:2], 1)) + NOISE * random.normal(size=(count, *shape))
    values = 0.16 * difficulty * effects
    speakers = np.repeat(np.arange(num_speakers), NUM_CLIPS * NUM_TIMESTEPS).tolist()
    return Experiment(values.reshape(count, -1), speakers, worth)


def _alike(random: Random, count: int, shape: tuple[int, ...]) -> Floats:
    """Normal numbers for each trial, of which a third each is common to those of a threshold and of a rate."""
    index = np.arange(count)
    thresholds, rates = random.normal(size=(4, *shape)), random.normal(size=(count // 4 + 1, *shape))
    return np.asarray((thresholds[index % 4] + rates[index // 4] + random.normal(size=(count, *shape))) / np.sqrt(3))


@dataclass
class Counts:
    """How a method has done."""

    held: int = 0
    """Intervals that held the truth."""
    width: float = 0.0
    """Of all intervals together."""

    def add(self, low: float, high: float, truth: float) -> None:
        """Counts an interval."""
        self.held += low <= truth <= high
        self.width += high - low


@dataclass
class Outcome:
    """What came of many experiments."""

    ours: Counts
    """`relative_difference`."""
    uncorrected: Counts
    """The same for a trial that was chosen beforehand: Student's t over speakers."""
    percentile: Counts
    """A percentile bootstrap over speakers."""
    num_best_kept: int = 0
    """How often a trial that is truly the best was among those that cannot be told from it."""
    share_tied: float = 0.0
    """Of all trials, those that cannot be told from the best, on average."""


def measure(num_speakers: int, truth: str, num_experiments: int, seed: int = 0) -> Outcome:
    """Runs experiments."""
    random = np.random.default_rng([seed, num_speakers, list(TRUTHS).index(truth)])
    outcome = Outcome(Counts(), Counts(), Counts())
    for _ in range(num_experiments):
        made = experiment(random, num_speakers, truth)
        trials, baseline = Samples.of(made.values[:-1], made.speakers), Samples.of(made.values[-1:], made.speakers)
        best = int(trials.means.argmin())
        tied = tied_with_best(trials, best)
        true = float((1 + made.worth[best]) / (1 + made.worth[-1]) - 1)
        interval = relative_difference(trials, best, tied, baseline)
        outcome.ours.add(interval.low, interval.high, true)
        alone = relative_difference(trials, best, np.arange(len(tied)) == best, baseline)
        outcome.uncorrected.add(alone.low, alone.high, true)
        outcome.percentile.add(*_percentiles(random, made, best), true)
        outcome.num_best_kept += bool(tied[made.worth[:-1] == made.worth[:-1].min()].any())
        outcome.share_tied += float(tied.mean()) / num_experiments
    return outcome


def _percentiles(random: Random, made: Experiment, best: int) -> tuple[float, float]:
    num_speakers = made.speakers[-1] + 1
    of_speakers = made.values[[best, -1]].reshape(2, num_speakers, -1).mean(axis=2)
    drawn = of_speakers[:, random.integers(num_speakers, size=(1000, num_speakers))].mean(axis=2)
    low, high = np.quantile(drawn[0] / drawn[1] - 1, [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    """Prints how often the truth was held."""
    num_experiments = int(sys.argv[1]) if len(sys.argv) > 1 else NUM_EXPERIMENTS
    title = (
        f"how many of {num_experiments} intervals of 95 % hold the truth (and how wide they are, percentage points)"
    )
    table = Table(title=title)
    table.add_column("speakers")
    table.add_column("trials")
    for column in ("interval", "without correction", "percentile bootstrap", "best among tied", "tied"):
        table.add_column(column, justify="right")
    for num_speakers in NUM_SPEAKERS:
        for truth in TRUTHS:
            outcome = measure(num_speakers, truth, num_experiments)
            cells = [
                f"{counts.held / num_experiments:.1%} ({100 * counts.width / num_experiments:.1f})"
                for counts in (outcome.ours, outcome.uncorrected, outcome.percentile)
            ]
            cells += [f"{outcome.num_best_kept / num_experiments:.1%}", f"{outcome.share_tied:.0%}"]
            table.add_row(str(num_speakers), truth, *cells)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
