"""What a search asks for must fit its recipe: checked before anything is started."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from latentsync_ray.config.domains import Domain, Grid
from latentsync_ray.config.errors import UserError
from latentsync_ray.config.lengths import extremes, longest_trial
from latentsync_ray.config.loading import Variants
from latentsync_ray.config.plain import Settings
from latentsync_ray.config.recipe import FIRST_STAGE, SECOND_STAGE, Recipe, metric_complaints
from latentsync_ray.config.schema import inner_value
from latentsync_ray.config.search import SearchConfig

_SEARCHABLE = ("transition", FIRST_STAGE, SECOND_STAGE, "divergence_factor", "seed")
"""Sections of a recipe that trials of one search may have different values in."""
_MOST_TRIED = 1000
"""Combinations of the other values beside which a value is tried before it is refused."""


def check_search(search: SearchConfig, recipe: Recipe, where: str) -> None:
    """Refuses a search that cannot run over its recipe.

    Args:
        search: What is searched, and how.
        recipe: The recipe before a trial's own values.
        where: The search space's file, for errors.

    Raises:
        UserError: The metric is not measured, the scheduler could never stop a trial, or values break a rule.
    """
    for rule, remedy in metric_complaints(search.metric, recipe.metrics_and_objective()):
        raise UserError(f"{where}: metric: {rule}, got {search.metric!r}; {remedy}")
    for name in search.param_space:
        if name.split(".")[0] not in _SEARCHABLE and inner_value(recipe, name.split(".")[0]) is not None:
            rule = "must stay the same for all trials, else they cannot be compared"
            raise UserError(f"{where}: param_space.{name}: {rule}; remove it")
        section, _, setting = name.partition(".")
        if section in (FIRST_STAGE, SECOND_STAGE) and setting in recipe.not_in_segments:
            raise UserError(f"{where}: param_space.{name}: changes no number that trials are compared by; remove it")
    _check_values(search.param_space, Variants(recipe, f"{where}: param_space"))
    for every in extremes(search, recipe, "second_stage.report_every_steps"):
        if search.trials.extend % every:
            rule = f"must be a multiple of second_stage.report_every_steps ({every})"
            raise UserError(
                f"{where}: trials.extend: {rule}, got {search.trials.extend}; move it to a report boundary"
            )
    scheduler = search.trial_scheduler
    longest = longest_trial(search, recipe).of(scheduler.time_attr)
    if scheduler.name == "asha" and scheduler.grace_period > longest:
        rule = f"must not be above the longest trial's {scheduler.time_attr} ({longest:g})"
        raise UserError(f"{where}: trial_scheduler.grace_period: {rule}, got {scheduler.grace_period}; lower it")


def check_fixed(param_space: Mapping[str, Domain], overrides: Mapping[str, Any], where: str) -> None:
    """Refuses to fix a value that is searched.

    Args:
        param_space: What is searched.
        overrides: What is fixed, by dotted name.
        where: Place of the overrides, for errors.

    Raises:
        UserError: One of the overrides has no effect, with both names.
    """
    for name, value in overrides.items():
        for leaf in _leaves(name, value):
            for searched in param_space:
                if f"{leaf}.".startswith(f"{searched}.") or searched.startswith(f"{leaf}."):
                    rule = f"must not be fixed, since param_space.{searched} searches it"
                    raise UserError(f"{where} {leaf}: {rule}, got {value!r}; remove either")


def _leaves(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for inner, item in value.items():
            yield from _leaves(f"{name}.{inner}", item)
    else:
        yield name


def _check_values(param_space: Mapping[str, Domain], variants: Variants) -> None:
    """Every combination of the grids must give a valid recipe, and every value that is drawn beside some others."""
    grids = {name: domain for name, domain in param_space.items() if isinstance(domain, Grid)}
    drawn = {name: domain for name, domain in param_space.items() if name not in grids}
    for name, domain in drawn.items():
        others = {other: param_space[other] for other in param_space if other != name}
        for value in domain.samples():
            _check_beside(variants, {name: value}, others)
    for combination in _combinations(grids):
        _check_beside(variants, combination, drawn)


def _check_beside(variants: Variants, values: Mapping[str, Any], others: Mapping[str, Domain]) -> None:
    """Refuses values that give no valid recipe, whatever the others are."""
    fault: UserError | None = None
    for beside in itertools.islice(_combinations(others), _MOST_TRIED):
        try:
            variants.recipe({**values, **beside})
            return
        except UserError as error:
            fault = fault or error
    assert fault is not None
    raise fault


def _combinations(domains: Mapping[str, Domain]) -> Iterator[Settings]:
    for values in itertools.product(*(domain.samples() for domain in domains.values())):
        yield dict(zip(domains, values, strict=True))
