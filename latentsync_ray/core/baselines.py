"""Trials beside a search's own: why a trial is trained, and the baselines that the best trial is compared with."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields
from enum import StrEnum

from latentsync_ray.config.domains import Grid
from latentsync_ray.config.length import first_stage_steps
from latentsync_ray.config.lengths import extremes, has_fixed_second_stage, longest_trial
from latentsync_ray.config.loading import load_recipe
from latentsync_ray.config.plain import Settings, plain
from latentsync_ray.config.recipe import Recipe
from latentsync_ray.config.search import SEEDS, SearchConfig

_THRESHOLD = "transition.at_step"


class Role(StrEnum):
    """Why a trial was trained."""

    SEARCHED = "searched"
    """It is one of the search's own."""
    NEVER = "never leaving stage one"
    """Baseline: stage one to the full length."""
    FIRST = "leaving at the first threshold"
    """Baseline: the search's earliest transition, with the recipe's other values."""
    SHIPPED = "the recipe as shipped"
    """Baseline: the recipe with its own transition policy."""
    CONFIRMING = "confirming"
    """It trains one of the best trials again under other draws."""


BASELINES = (Role.NEVER, Role.FIRST, Role.SHIPPED)
"""The roles of trials that others are compared with."""


@dataclass(frozen=True)
class Asked:
    """A trial that is to be trained beside the search's own."""

    role: Role
    """Why."""
    values: Settings
    """Its own values of the recipe, by dotted name."""


def baselines_of(search: SearchConfig, recipe: Recipe) -> list[Asked]:
    """The baselines of a search; see `baselines`."""
    if not _has_baselines(search):
        return []
    return baselines(search, recipe, load_recipe(search.recipe))


def _has_baselines(search: SearchConfig) -> bool:
    return search.baselines and search.share and search.start_from is None


def baselines(search: SearchConfig, recipe: Recipe, shipped: Recipe) -> list[Asked]:
    """What the best trial of a search is compared with, for each seed of the space.

    Args:
        search: Those that do not share, or that go on from a segment, have no baselines.
        recipe: The recipe before a trial's own values.
        shipped: The recipe as its files have it, whose transition policy is a baseline.
    """
    if not _has_baselines(search):
        return []
    every = recipe.first_stage.report_every_steps
    whole = None if has_fixed_second_stage(search) else first_stage_steps(recipe)
    never: Settings = {"transition.plateau": None, "transition.below": None, _THRESHOLD: None}
    if whole is None:
        longest = longest_trial(search, recipe)
        whole = longest.first_stage + longest.second_stage
        never |= {"length": {"steps": whole}, "second_stage.num_steps": None}
    # Beyond the last boundary, so that the policy never has a say.
    kinds = {Role.NEVER: never | {"transition.max_step": (whole // every + 1) * every}}
    if _THRESHOLD in search.param_space:
        kinds[Role.FIRST] = {_THRESHOLD: extremes(search, recipe, _THRESHOLD)[0]}
    own = {f.name: getattr(shipped.transition, f.name) for f in fields(shipped.transition)}
    kinds[Role.SHIPPED] = {
        f"transition.{name}": plain(value) for name, value in own.items() if value != getattr(recipe.transition, name)
    }
    space = search.param_space.items()
    seeds = {name: domain.listed for name, domain in space if name in SEEDS and isinstance(domain, Grid)}
    draws = [dict(zip(seeds, values, strict=True)) for values in itertools.product(*seeds.values())]
    return [Asked(role, {**values, **draw}) for role, values in kinds.items() for draw in draws]
