"""The answer of a search as data: when to switch, how sure that is, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from latentsync_ray.config.plain import Plain
from latentsync_ray.core.baselines import Role


@dataclass(frozen=True)
class Difference:
    """How much the best trial's metric differs from another trial's, as shares of the other's."""

    relative: float
    """-0.12 means 12 % less."""
    low: float
    """Lower end of the 95 % interval, corrected for the choice of the best of many."""
    high: float
    """Upper end."""


@dataclass(frozen=True)
class ParameterAnswer:
    """What a search says about one of its parameters."""

    name: str
    """Dotted name."""
    best: Plain
    """Its value in the best trial."""
    tied: tuple[Plain, ...]
    """Its values in trials that cannot be told from the best, the best's included; in order."""
    worse: tuple[Plain, ...]
    """Its values of which no trial is among these."""
    diverged: tuple[Plain, ...]
    """Its values of which every trial has diverged."""
    at_edge: bool
    """Whether the best value is the first or last of its range, so that a better one may lie outside."""


@dataclass(frozen=True)
class NextCommand:
    """A command that is worth typing next."""

    purpose: str
    """What it is for, such as `search a wider range`."""
    command: str
    """Ready to paste into a shell."""


@dataclass(frozen=True)
class Answer:
    """What a search has found."""

    best: int
    """Number of the best trial."""
    tied: tuple[int, ...]
    """Numbers of all trials that cannot be told from it, itself included."""
    num_pairs: int
    """Pairs of a validation sample and its noise by which trials were compared; 0 if their terms are not stored."""
    num_clips: int
    """Recordings that these are from."""
    num_groups: int
    """Groups of recordings, such as speakers."""
    differences: Mapping[Role, Difference]
    """Against each baseline that ran to its end."""
    parameters: tuple[ParameterAnswer, ...]
    """In the order of the search space."""
    sentences: tuple[str, ...]
    """The answer in words, the most important first."""
    commands: tuple[NextCommand, ...]
    """What to do next."""
    policies: tuple[str, ...]
    """Transition policies, as YAML to paste, that would have left stage one at the best step."""
