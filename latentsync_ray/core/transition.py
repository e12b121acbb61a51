"""When to leave stage one, and when a training has diverged: pure functions of the metric history."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from latentsync_ray.config.transition import BelowConfig, PlateauConfig, TransitionConfig


class Observation(NamedTuple):
    """The validation metrics at one report boundary."""

    global_step: int
    metrics: Mapping[str, float]


def should_transition(policy: TransitionConfig, history: Sequence[Observation]) -> bool:
    """Whether stage one ends at the last boundary of the history.

    Args:
        policy: Conditions and bounds.
        history: All boundaries of stage one so far, oldest first; none before the first step.

    Raises:
        KeyError: A condition reads a metric that was not validated.
    """
    if not history:  # only a threshold can speak before the first step
        alone = policy.plateau is None and policy.below is None
        return policy.at_step == 0 and (policy.combine == "any" or alone)
    step = history[-1].global_step
    if step >= policy.max_step:
        return True
    if step < policy.min_step:
        return False
    conditions = []
    if policy.at_step is not None:
        conditions.append(step >= policy.at_step)
    if policy.plateau is not None:
        conditions.append(_on_plateau(policy.plateau, history))
    if policy.below is not None:
        conditions.append(_below(policy.below, history[-1]))
    return any(conditions) if policy.combine == "any" else bool(conditions) and all(conditions)


def objective(metrics: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Weighted sum of the validation terms."""
    return float(sum(_weighted_terms(metrics, weights).values()))


def _weighted_terms(metrics: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    return {name: weight * metrics[name] for name, weight in weights.items()}


def divergence(factor: float, weights: Mapping[str, float], history: Sequence[Observation]) -> str | None:
    """Says that the objective has grown to `factor` times its best or more, with step and term; None if it has not.

    Args:
        factor: Growth that counts as divergence.
        weights: Of the objective's terms, by metric.
        history: All boundaries so far, oldest first, at least one.
    """
    best, last = min(history, key=lambda seen: objective(seen.metrics, weights)), history[-1]
    least, now = objective(best.metrics, weights), objective(last.metrics, weights)
    if last is best or now < factor * least:
        return None
    terms, terms_before = _weighted_terms(last.metrics, weights), _weighted_terms(best.metrics, weights)
    worst = max(terms, key=lambda term: terms[term] - terms_before[term])
    return (
        f"at step {last.global_step} val/objective is {now:.3g}, at step {best.global_step} it was "
        f"{least:.3g}; most of it is {worst}, {last.metrics[worst]:.3g} where it was "
        f"{best.metrics[worst]:.3g}"
    )


def _on_plateau(condition: PlateauConfig, history: Sequence[Observation]) -> bool:
    """No relative improvement of the moving average by min_delta within the last patience_steps."""
    average = best = history[0].metrics[condition.metric]
    best_step = history[0].global_step
    for global_step, metrics in history[1:]:
        average = condition.smoothing * average + (1 - condition.smoothing) * metrics[condition.metric]
        if average < best - condition.min_delta * abs(best):
            best, best_step = average, global_step
    return history[-1].global_step - best_step >= condition.patience_steps


def _below(condition: BelowConfig, last: Observation) -> bool:
    return last.metrics[condition.metric] < condition.value
