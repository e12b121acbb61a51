"""Where a value lies in its domain, and which values around it are worth trying next."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeGuard

from latentsync_ray.config.domains import Choice, Domain, Grid, LogUniform, RandInt, Uniform

_NEAR = 0.05
"""Share of a range; what is nearer to its end is at its edge."""
_LOGARITHMIC = 10
"""Positive numbers of which the largest is so many times the least are spaced by their ratios."""
Listed = Grid | Choice
Range = Uniform | LogUniform | RandInt


def at_edge(domain: Domain, value: Any) -> bool:
    """Whether a number is the first or last of its domain, or near the end of its range."""
    return is_low(domain, value) or is_high(domain, value)


def is_low(domain: Domain, value: Any) -> bool:
    """Whether a number is the least of its domain, or near the lower end of its range."""
    place = _place(domain, value)
    return place is not None and place <= (_NEAR if isinstance(domain, Range) else 0)


def is_high(domain: Domain, value: Any) -> bool:
    """Whether a number is the greatest of its domain, or near the upper end of its range."""
    place = _place(domain, value)
    return place is not None and place >= (1 - _NEAR if isinstance(domain, Range) else 1)


def wider(domain: Domain, value: Any, unit: int = 1) -> Domain | None:
    """The domain that goes on beyond the edge at which a value is; None if it cannot.

    Args:
        domain: Of the value.
        value: At its edge.
        unit: Whole numbers must be multiples of it.
    """
    if isinstance(domain, Listed):
        numbers = _numbers(domain)
        if not is_high(domain, value):
            numbers = numbers[::-1]  # the value is the last one
        before = numbers[-2]
        first = _beyond(numbers, before, value, unit)
        beyond = [first, _beyond(numbers, value, first, unit)]
        new = [number for number in dict.fromkeys(beyond) if number not in numbers]
        return type(domain)(tuple(sorted([before, value, *new]))) if new else None
    assert isinstance(domain, Range)
    scale, back = _scale(isinstance(domain, LogUniform))
    low, high = scale(domain.low), scale(domain.high)
    whole = isinstance(domain, RandInt)
    if is_high(domain, value):
        up = _rounded(back(high + (high - low) / 2), whole, unit)
        return replace(domain, high=up) if up > domain.high else None
    down = back(low - (high - low) / 2)
    down = _rounded(domain.low / 2 if down <= 0 <= domain.low else down, whole, unit)
    return replace(domain, low=down) if down < domain.low else None


def finer(domain: Domain, value: Any, unit: int = 1) -> Domain | None:
    """Values around one, up to those beside it; None if there are none between.

    Args:
        domain: Of the value.
        value: The best one.
        unit: Whole numbers must be multiples of it.
    """
    if _place(domain, value) is None:
        return None
    if isinstance(domain, Listed):
        numbers = _numbers(domain)
        index = numbers.index(value)
        around = numbers[max(0, index - 1) : index + 2]
        scale, back = _scale(_is_logarithmic(numbers))
        whole = all(isinstance(number, int) for number in numbers)
        middles = {
            _rounded(back((scale(one) + scale(other)) / 2), whole, unit) for one, other in itertools.pairwise(around)
        }
        return type(domain)(tuple(sorted({*around, *middles}))) if not middles <= {*numbers} else None
    assert isinstance(domain, Range)
    scale, back = _scale(isinstance(domain, LogUniform))
    span, middle = scale(domain.high) - scale(domain.low), scale(value)
    whole = isinstance(domain, RandInt)
    low = max(domain.low, _rounded(back(middle - span / 8), whole, unit))
    high = min(domain.high, _rounded(back(middle + span / 8), whole, unit))
    return replace(domain, low=low, high=high) if low < high else None


def _place(domain: Domain, value: Any) -> float | None:
    """From 0 at the least number of a domain to 1 at the greatest; None if it has no two numbers."""
    if isinstance(domain, Range):
        scale, _ = _scale(isinstance(domain, LogUniform))
        low, high = scale(domain.low), scale(domain.high)
        return (scale(value) - low) / (high - low) if _is_number(value) and high > low else None
    numbers = _numbers(domain) if isinstance(domain, Listed) else []
    if len(numbers) < 2 or len(numbers) < len(domain.values()) or value not in numbers:
        return None
    index: int = numbers.index(value)
    return index / (len(numbers) - 1)


def _numbers(domain: Listed) -> list[Any]:
    return sorted({number for number in domain.listed if _is_number(number)})


def _beyond(numbers: Sequence[float], before: float, last: float, unit: int) -> Any:
    """The number that follows on another two."""
    whole = all(isinstance(number, int) for number in numbers)
    following = last * last / before if _is_logarithmic(numbers) else last + (last - before)
    if following <= 0 < min(numbers):
        following = last / 2
    return _rounded(following, whole, unit)


def _is_logarithmic(numbers: Sequence[float]) -> bool:
    return min(numbers) > 0 and max(numbers) >= _LOGARITHMIC * min(numbers)


def _scale(logarithmic: bool) -> tuple[Callable[[float], float], Callable[[float], float]]:
    return (math.log, math.exp) if logarithmic else (float, float)


def _rounded(number: float, whole: bool, unit: int) -> Any:
    return round(number / unit) * unit if whole else float(f"{number:.2g}")


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
