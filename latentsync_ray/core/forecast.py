"""What a search is expected to take, as data: made before it runs, and set beside what it took."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """A figure that depends on what a search finds; all three are the same where it does not adapt."""

    least: float
    """No course of the search has less, unless trials diverge or fail."""
    likely: float
    """Of one course, where trials leave stage one at different steps and comparisons are drawn."""
    most: float
    """No course has more."""

    @property
    def is_exact(self) -> bool:
        """Whether it is the same in every course."""
        return self.least == self.most

    def times(self, factor: float) -> Span:
        """The same in another unit."""
        return Span(self.least * factor, self.likely * factor, self.most * factor)


@dataclass(frozen=True)
class StageTimes:
    """What a stage takes."""

    train_seconds: float
    """Of a step."""
    boundary_seconds: float
    """Of validation, publishing and restoring, at each report boundary."""
    state_bytes: int
    """Of a stored state."""

    def step_seconds(self, every: int) -> float:
        """Of a step with its share of what comes at a boundary.

        Args:
            every: Steps between report boundaries.
        """
        return self.train_seconds + self.boundary_seconds / every


@dataclass(frozen=True)
class Forecast:
    """What a search takes from now on: what is stored already is not trained again."""

    trials: int
    """How many there are in all."""
    steps: Span
    """Distinct steps of both stages, stored ones included."""
    first_stage_steps: Span
    """Distinct steps of stage one, stored ones included."""
    second_stage_steps: Span
    """Distinct steps of stage two, stored ones included."""
    steps_without_sharing: Span
    """Of both stages, if each trial trained everything by itself."""
    steps_stored: int | None
    """Of the course with the most steps, how many are stored; None if that is not known."""
    first_stage_seconds: float | None = None
    """Of a step of stage one with its share of validation; None if it is not known, as for all below."""
    second_stage_seconds: float | None = None
    """The same of stage two."""
    gpu_hours: Span | None = None
    """For which workers are held, one GPU each, on CPUs too."""
    wall_hours: Span | None = None
    """By the clock, from the start of the first worker group."""
    price: Span | None = None
    """GPU hours times the price of one, in its currency."""
    bytes_written: Span | None = None
    """Of states."""
    bytes_kept: Span | None = None
    """Of states that are still there at the end."""
