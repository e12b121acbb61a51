"""The values that a search may give to a parameter: one class for each kind of entry in `param_space`."""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from latentsync_ray.config.errors import UserError


@dataclass(frozen=True)
class Domain(ABC):
    """A set of values. `KINDS` names its subclasses as search spaces do."""

    kind: ClassVar[str]
    """Its name in a search space."""

    @abstractmethod
    def values(self) -> list[Any]:
        """What a search space writes behind the kind."""

    @abstractmethod
    def contains(self, value: Any) -> bool:
        """Whether a trial may have been given this value."""

    @abstractmethod
    def samples(self) -> list[Any]:
        """Values at which rules are checked: all of a list, the ends of a range and one between them."""

    @abstractmethod
    def sample(self, rng: random.Random) -> Any:
        """One value, drawn."""

    @abstractmethod
    def clip(self, value: Any) -> Any:
        """The nearest value of the domain, for one that a scheduler has perturbed."""

    def extremes(self) -> tuple[Any, Any] | None:
        """The least and the greatest number; None if there is no number."""
        numbers = [value for value in self.samples() if _is_number(value)]
        return (min(numbers), max(numbers)) if numbers else None

    def as_dict(self) -> dict[str, list[Any]]:
        """Plain values, as a search space writes them."""
        return {self.kind: self.values()}


@dataclass(frozen=True)
class _Listed(Domain):
    """Some values of any type."""

    listed: tuple[Any, ...]
    """In the order of the search space."""

    def values(self) -> list[Any]:
        """All of them."""
        return list(self.listed)

    def contains(self, value: Any) -> bool:
        """Whether it is one of them."""
        return value in self.listed

    def samples(self) -> list[Any]:
        """All of them."""
        return list(self.listed)

    def sample(self, rng: random.Random) -> Any:
        """One of them, all equally likely."""
        return rng.choice(self.listed)

    def clip(self, value: Any) -> Any:
        """The value itself: schedulers go from one of the listed values to another."""
        return value


@dataclass(frozen=True)
class Grid(_Listed):
    """Every draw of the other parameters is tried with each of these values."""

    kind = "grid"


@dataclass(frozen=True)
class Choice(_Listed):
    """Drawn from a list."""

    kind = "choice"


@dataclass(frozen=True)
class _Range(Domain):
    """Numbers between two bounds."""

    low: float
    """The least."""
    high: float
    """The greatest."""

    def values(self) -> list[Any]:
        """Both bounds."""
        return [self.low, self.high]

    def contains(self, value: Any) -> bool:
        """Whether it is a number between the bounds."""
        return _is_number(value) and self.low <= value <= self.high

    def samples(self) -> list[Any]:
        """Both bounds and a value between them, since a rule may hold at the bounds alone."""
        return [self.low, self.low + (self.high - self.low) / 3, self.high]

    def clip(self, value: Any) -> Any:
        """The value, moved to the nearer bound if it is outside."""
        return min(max(value, self.low), self.high)


@dataclass(frozen=True)
class Uniform(_Range):
    """Drawn evenly from a range."""

    kind = "uniform"

    def sample(self, rng: random.Random) -> float:
        """A number, every one equally likely."""
        return rng.uniform(self.low, self.high)


@dataclass(frozen=True)
class LogUniform(_Range):
    """Drawn from a range of positive numbers whose logarithms are even."""

    kind = "loguniform"

    def sample(self, rng: random.Random) -> float:
        """A number, every order of magnitude equally likely."""
        return math.exp(rng.uniform(math.log(self.low), math.log(self.high)))


@dataclass(frozen=True)
class RandInt(_Range):
    """Drawn evenly from whole numbers, `high` left out."""

    kind = "randint"
    low: int
    """The least."""
    high: int
    """One more than the greatest."""

    def contains(self, value: Any) -> bool:
        """Whether it is a whole number from `low` to below `high`."""
        return isinstance(value, int) and not isinstance(value, bool) and self.low <= value < self.high

    def samples(self) -> list[Any]:
        """The ends and a value between them."""
        return [self.low, min(self.low + 1, self.high - 1), self.high - 1]

    def sample(self, rng: random.Random) -> int:
        """A whole number, every one equally likely."""
        return rng.randrange(self.low, self.high)

    def clip(self, value: Any) -> Any:
        """The value, moved to the nearer end if it is outside."""
        return min(max(value, self.low), self.high - 1)


KINDS: dict[str, type[Grid | Choice | Uniform | LogUniform | RandInt]] = {
    domain.kind: domain for domain in (Grid, Choice, Uniform, LogUniform, RandInt)
}


def read_domain(entry: Any, where: str) -> Domain:
    """The domain that an entry of `param_space` stands for.

    Args:
        entry: For example `{"grid": [1, 2]}`.
        where: File and key, for the error.

    Raises:
        UserError: The entry is none.
    """
    kind = next(iter(entry)) if isinstance(entry, dict) and len(entry) == 1 else None
    if kind not in KINDS:
        kinds = ", ".join(KINDS)
        raise UserError(f"{where}: must be one of {kinds} with its values, got {entry!r}; e.g. {{grid: [1, 2]}}")
    values = entry[kind]
    if not isinstance(values, list) or not values:
        raise UserError(f"{where}: {kind} must be a list of values, got {values!r}; e.g. {{{kind}: [1, 2]}}")
    domain = KINDS[kind]
    if issubclass(domain, _Listed):
        return domain(tuple(values))
    _check_bounds(kind, values, where)
    return domain(*values)


def _check_bounds(kind: str, values: Sequence[Any], where: str) -> None:
    numbers = all(_is_number(value) and math.isfinite(value) for value in values)
    if len(values) != 2 or not numbers or values[0] >= values[1]:
        raise UserError(f"{where}: {kind} must be [low, high] with low < high, got {values!r}; give two numbers")
    if kind == "loguniform" and values[0] <= 0:
        raise UserError(f"{where}: loguniform needs low above 0, got {values!r}; raise it")
    if kind == "randint" and not all(isinstance(value, int) for value in values):
        raise UserError(f"{where}: randint must be two whole numbers, got {values!r}; round them")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
