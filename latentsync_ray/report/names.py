"""Short names: of parameters for narrow columns, and of trials after their numbers or values."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from latentsync_ray.config.plain import Parameters
from latentsync_ray.report.words import value_text

_LONGEST = 100
"""Characters of a run's name: W&B takes 128."""
_COUNTED = ("_steps", "_step")
"""Endings that a number says by itself."""


def short_names(names: Iterable[str]) -> dict[str, str]:
    """The shortest endings of dotted names that tell them apart.

    Args:
        names: For example `transition.at_step` and `second_stage.optimizer.lr`.

    Returns:
        Name -> for example `at_step` and `lr`; both learning rates are `first_stage.optimizer.lr` and so on.
    """
    names = list(names)
    endings = {name: _endings(name) for name in names}
    uses = Counter(ending for name in names for ending in endings[name])
    return {name: next((ending for ending in endings[name] if uses[ending] == 1), name) for name in names}


def _endings(name: str) -> list[str]:
    """The endings of a dotted name, the shortest first."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in reversed(range(len(parts)))]


def name_of(number: int) -> str:
    """What the trial of a number is called in folders, notes and logs."""
    return f"trial-{number:04d}"


def values_name(config: Parameters) -> str:
    """What a trial with these values is called where runs have names, such as `at400_lr2e-4`.

    Returns:
        A name of letters, digits, dots and `_+-` only; `recipe` where a search varies nothing.
    """
    parts = []
    for name, short in short_names(config).items():
        for ending in _COUNTED:
            short = short.removesuffix(ending)
        parts.append(f"{short}{value_text(config[name])}")
    return re.sub(r"[^\w.+-]+", "-", "_".join(sorted(parts)))[:_LONGEST] or "recipe"
