"""How values and trials are written, on the page and at the end of a search."""

from __future__ import annotations

from latentsync_ray.report.trials import TrialResult


def value_text(value: object) -> str:
    """A value as people write it, four digits of a number at most; a dash for none."""
    if isinstance(value, list | tuple):
        return ", ".join(map(value_text, value))
    if isinstance(value, float):
        return f"{value:.4g}".replace("e-0", "e-")
    return "-" if value is None else str(value)


def facts(trial: TrialResult) -> list[str]:
    """What to know of a trial: its number and status, its values, and where it left stage one."""
    values = [f"{name} {value_text(value)}" for name, value in trial.config.items()]
    left = [] if trial.transition_step is None else [f"transition at step {trial.transition_step}"]
    return [f"trial {trial.number}, {trial.status}", *values, *left]
