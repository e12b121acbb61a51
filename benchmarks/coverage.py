"""`make coverage`: how often the intervals of a search hold the truth, in experiments whose truth is known.

An experiment has the demo's numbers: 12 to 20 trials and a baseline on held-out speakers with a clip each, every
clip at two timesteps. Speakers, clips and timesteps differ in difficulty, and trials differ by what they are truly
worth, by how they get on with a speaker and a clip (trials of one threshold or of one learning rate alike), and by
noise. The best trial is chosen by its mean and compared with the baseline on the same data. The truth is what the two
would differ by on all speakers there could be.

With seeds, a training differs from others of the same values too, and the truth is what values are worth on the mean
of all seeds. Either each of 16 values is trained under three seeds, or the best three of single trainings are trained
again under three others. The baseline is trained once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from latentsync_ray.report.comparison import relative_difference, tied_with_best
from latentsync_ray.report.samples import Floats, Samples
from latentsync_ray.report.seeds import SeedSpread

NUM_EXPERIMENTS = 200
NUM_CLIPS, NUM_TIMESTEPS = 1, 2
"""Of a speaker, and of a clip."""
NUM_SPEAKERS = (6, 12, 24)
SPEAKER, CLIP, NOISE, SEED = 0.02, 0.015, 0.015, 0.01
"""Standard deviations, as shares of the metric: of how a trial gets on with a speaker and with a clip, of the rest,
and of what a seed does to a training."""
NUM_VALUES, NUM_SEEDS, NUM_CONFIRMED = 16, 3, 3

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
    """(T + 1, N): trainings, and last the baseline, on N pairs."""
    speakers: Sequence[int]
    """Of each pair."""


def validated(random: Random, num_speakers: int, worth: Floats, owners: NDArray[np.intp]) -> Experiment:
    """Trainings on clips that are drawn.

    Args:
        random: Of what is drawn.
        num_speakers: Held out.
        worth: (T,) what each training is truly worth, as a share.
        owners: (T,) which values each was trained with.
    """
    shape = (num_speakers, NUM_CLIPS, NUM_TIMESTEPS)
    difficulty = np.exp(random.normal(0, 0.25, (num_speakers, 1, 1)) + random.normal(0, 0.15, (*shape[:2], 1)))
    difficulty = difficulty * np.linspace(0.6, 1.4, NUM_TIMESTEPS)
    effects = 1 + worth[:, None, None, None] + SPEAKER * _alike(random, owners, (num_speakers, 1, 1))
    effects = effects + CLIP * _alike(random, owners, (*shape[:2], 1))
    effects = effects + NOISE * random.normal(size=(len(worth), *shape))
    speakers = np.repeat(np.arange(num_speakers), NUM_CLIPS * NUM_TIMESTEPS)
    return Experiment((0.16 * difficulty * effects).reshape(len(worth), -1), speakers.tolist())


def _alike(random: Random, owners: NDArray[np.intp], shape: tuple[int, ...]) -> Floats:
    """Normal numbers for each training, of which a third each is that of its threshold and that of its rate."""
    thresholds, rates = random.normal(size=(4, *shape)), random.normal(size=(owners.max() // 4 + 1, *shape))
    own = random.normal(size=(len(owners), *shape))
    return np.asarray((thresholds[owners % 4] + rates[owners // 4] + own) / np.sqrt(3))


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

    count: int = 0
    """Of experiments."""
    ours: Counts = field(default_factory=Counts)
    """`relative_difference`."""
    uncorrected: Counts = field(default_factory=Counts)
    """The same for a trial that was chosen beforehand: Student's t over speakers."""
    percentile: Counts = field(default_factory=Counts)
    """A percentile bootstrap over speakers."""
    num_best_kept: int = 0
    """How often a trial that is truly the best was among those that cannot be told from it."""
    share_tied: float = 0.0
    """Of all trials, those that cannot be told from the best; summed up."""

    def __add__(self, other: Outcome) -> Outcome:
        """Both together."""
        methods = (self.ours, other.ours), (self.uncorrected, other.uncorrected), (self.percentile, other.percentile)
        counts = [Counts(one.held + two.held, one.width + two.width) for one, two in methods]
        kept, tied = self.num_best_kept + other.num_best_kept, self.share_tied + other.share_tied
        return Outcome(self.count + other.count, *counts, kept, tied)


def measure(num_speakers: int, truth: str, num_experiments: int, seed: int = 0) -> Outcome:
    """Runs experiments with one training of each value."""
    random = np.random.default_rng([seed, num_speakers, list(TRUTHS).index(truth)])
    outcome = Outcome()
    for _ in range(num_experiments):
        count = int(random.integers(12, 21)) + 1
        worth = TRUTHS[truth](random, count)
        made = validated(random, num_speakers, worth, np.arange(count))
        trials, baseline = Samples.of(made.values[:-1], made.speakers), Samples.of(made.values[-1:], made.speakers)
        _judge(random, outcome, made, trials, baseline, worth, np.ones(count - 1, dtype=bool))
    return outcome


def measure_seeds(num_speakers: int, confirms: bool, num_experiments: int, seed: int = 0) -> Outcome:
    """Runs experiments with several trainings: of all values, or of the best three again."""
    random = np.random.default_rng([seed, num_speakers, 100 + confirms])
    outcome = Outcome()
    for _ in range(num_experiments):
        worth = random.normal(0, 0.01, NUM_VALUES + 1)
        owners = np.append(np.repeat(np.arange(NUM_VALUES), 1 + NUM_SEEDS), NUM_VALUES)
        seeds = SEED * random.normal(size=len(owners))
        made = validated(random, num_speakers, worth[owners] + seeds, owners)
        trainings = made.values[:-1].reshape(NUM_VALUES, 1 + NUM_SEEDS, -1)
        first, others = trainings[:, 0], trainings[:, 1:]
        order = first.mean(axis=1).argsort()
        eligible = np.isin(np.arange(NUM_VALUES), order[:NUM_CONFIRMED]) if confirms else np.ones(NUM_VALUES, bool)
        spread = SeedSpread.of(
            [
                dict(enumerate(others[index].mean(axis=1))) if eligible[index] else {-1: float(first[index].mean())}
                for index in range(NUM_VALUES)
            ]
        )
        errors = spread.alone.errors(np.where(eligible, NUM_SEEDS, 1))
        values = np.where(eligible[:, None], others.mean(axis=1), first)
        trials = Samples.of(values, made.speakers, errors, spread.alone.degrees)
        error = spread.alone.errors(np.ones(1))
        baseline = Samples.of(made.values[-1:], made.speakers, error, spread.alone.degrees)
        judged = replace(made, values=np.append(values, made.values[-1:], axis=0))
        _judge(random, outcome, judged, trials, baseline, worth, eligible)
    return outcome


def _judge(
    random: Random,
    outcome: Outcome,
    made: Experiment,
    trials: Samples,
    baseline: Samples,
    worth: Floats,
    eligible: NDArray[np.bool_],
) -> None:
    """Chooses the best, and counts what its intervals hold.

    Args:
        random: Of the percentile bootstrap.
        outcome: What to add to.
        made: Candidates, and last the baseline.
        trials: The candidates.
        baseline: The baseline.
        worth: (K + 1,) what is true.
        eligible: (K,) which candidates may be the best.
    """
    best = int(np.where(eligible, trials.means, np.inf).argmin())
    tied = tied_with_best(trials, best)
    truth = float((1 + worth[best]) / (1 + worth[-1]) - 1)
    for counts, chosen_among in (
        (outcome.ours, tied & eligible),
        (outcome.uncorrected, np.arange(len(tied)) == best),
    ):
        interval = relative_difference(trials, best, chosen_among, baseline)
        counts.add(interval.low, interval.high, truth)
    outcome.percentile.add(*_percentiles(random, made, best), truth)
    outcome.num_best_kept += bool(tied[worth[:-1] == worth[:-1].min()].any())
    outcome.share_tied += float(tied.mean())
    outcome.count += 1


def _percentiles(random: Random, made: Experiment, best: int) -> tuple[float, float]:
    num_speakers = made.speakers[-1] + 1
    of_speakers = made.values[[best, -1]].reshape(2, num_speakers, -1).mean(axis=2)
    drawn = of_speakers[:, random.integers(num_speakers, size=(1000, num_speakers))].mean(axis=2)
    low, high = np.quantile(drawn[0] / drawn[1] - 1, [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    """Prints how often the truth was held."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else NUM_EXPERIMENTS
    table = Table(title=f"how many of {count} intervals of 95 % hold the truth, and how wide they are in per cent")
    table.add_column("speakers")
    table.add_column("trials")
    for column in ("interval", "uncorrected", "percentile", "best in tied", "tied"):
        table.add_column(column, justify="right")
    for num_speakers in NUM_SPEAKERS:
        outcomes = {truth: measure(num_speakers, truth, count) for truth in TRUTHS}
        outcomes["all of these"] = sum(outcomes.values(), start=Outcome())
        outcomes["three seeds each"] = measure_seeds(num_speakers, False, count)
        outcomes["the best three confirmed"] = measure_seeds(num_speakers, True, count)
        for name, outcome in outcomes.items():
            cells = [
                f"{counts.held / outcome.count:.1%} ({100 * counts.width / outcome.count:.1f})"
                for counts in (outcome.ours, outcome.uncorrected, outcome.percentile)
            ]
            cells += [f"{outcome.num_best_kept / outcome.count:.1%}", f"{outcome.share_tied / outcome.count:.0%}"]
            table.add_row(str(num_speakers), name, *cells)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
