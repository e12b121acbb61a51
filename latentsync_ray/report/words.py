"""How values and trials are written, on the page and at the end of a search."""

from __future__ import annotations

import math
from collections.abc import Sequence

from latentsync_ray.report.answer import Difference
from latentsync_ray.report.trials import TrialResult

_SMALL, _LARGE = 0.01, 1e4
"""Numbers below or from here on are written with an exponent."""


def value_text(value: object, digits: int = 4) -> str:
    """A value as people write it, such as 2e-4: so many digits of a number at most; a dash for none."""
    if isinstance(value, list | tuple):
        return ", ".join(value_text(item, digits) for item in value)
    if isinstance(value, float):
        if value and (abs(value) < _SMALL or abs(value) >= _LARGE) and math.isfinite(value):
            mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
            return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
        return f"{value:.{digits}g}"
    return "-" if value is None else str(value)


def facts(trial: TrialResult) -> list[str]:
    """What to know of a trial: its number and status, its values, and where it left stage one."""
    values = [f"{name} {value_text(value)}" for name, value in trial.config.items()]
    left = [] if trial.transition_step is None else [f"transition at step {trial.transition_step}"]
    return [f"trial {trial.number}, {trial.status}", *values, *left]


def short_text(value: object) -> str:
    """A value as a sentence says it."""
    return value_text(value, digits=3)


def listed(texts: Sequence[str]) -> str:
    """Some texts with commas, and `and` before the last one."""
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


def percent_text(share: float) -> str:
    """A share with its sign, in per cent."""
    return f"{_percent(share, 0 if abs(share) >= 0.1 else 1, sign='+')} %"


def interval_text(difference: Difference) -> str:
    """A difference and its interval in per cent, to as many digits as the interval's width leaves."""
    width = difference.high - difference.low
    digits = 0 if width >= 0.04 else 1 if width >= 0.004 else 2
    low, high = _percent(difference.low, digits), _percent(difference.high, digits)
    return f"{_percent(difference.relative, digits, sign='+')} % [{low}, {high}]"


def _percent(share: float, digits: int, sign: str = "") -> str:
    return f"{round(100 * share, digits) + 0.0:{sign}.{digits}f}"
