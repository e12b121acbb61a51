"""Commands that are worth typing after a search; each is one that its command accepts."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from latentsync_ray.cli import program
from latentsync_ray.config.arguments import split_argument
from latentsync_ray.config.domains import Choice, Domain, Grid
from latentsync_ray.config.length import first_stage_steps
from latentsync_ray.config.loading import with_values_of_type
from latentsync_ray.config.plain import Plain
from latentsync_ray.config.recipe import Recipe
from latentsync_ray.config.schema import all_complaints
from latentsync_ray.config.search import POPULATION_SCHEDULERS, SEEDS, SearchConfig
from latentsync_ray.report.answer import NextCommand, ParameterAnswer
from latentsync_ray.report.ranges import finer, wider
from latentsync_ray.report.ranking import Ranking

_THRESHOLD, _FIRST, _LAST = "transition.at_step", "transition.min_step", "transition.max_step"
_CONFIRMED, _SEEDS = 3, 3
"""Candidates that are trained again, and under how many seeds."""
WIDER, CONFIRM = "search a wider range", "train the best ones again under other seeds"
FINER, LONGER = "search between the best values and those beside them", "see whether it holds for longer trainings"
TRAIN, EXPORT = "train the best recipe", "write the best UNet for LatentSync's own scripts"


def next_commands(
    search: SearchConfig,
    recipe: Recipe,
    ranking: Ranking,
    parameters: Sequence[ParameterAnswer],
    folder: str,
) -> tuple[NextCommand, ...]:
    """What to do next, the most useful first.

    Args:
        search: What was asked.
        recipe: The recipe before a trial's own values.
        ranking: Of its candidates.
        parameters: What the search says about each.
        folder: Folder or URI of its results.
    """
    made: dict[str, str | None] = {}
    if search.given and search.param_space:
        again = _Again(search, recipe)
        undecided = 1 < len(ranking.candidates) == len(ranking.tied)
        made[WIDER] = again.wider(parameters)
        made[CONFIRM] = None if _has_seeds(search, ranking) else again.confirmed(len(ranking.candidates))
        made[FINER] = None if undecided else again.finer(parameters)
        made[LONGER] = again.longer()
    here = _short(folder)
    if "://" not in folder and search.param_space:
        storage = [] if search.storage == SearchConfig.storage else [f"storage={search.storage}"]
        made[TRAIN] = shlex.join([*program("train").split(), f"{here}/best", *storage])
    if recipe.training == Recipe.training:
        out = f"trial{ranking.candidates[ranking.best].number}.pt"
        made[EXPORT] = shlex.join([*program("export").split(), here, out])
    return tuple(NextCommand(purpose, command) for purpose, command in made.items() if command is not None)


class _Again:
    """The same search with other values.

    Args:
        search: As it was given.
        recipe: The recipe before a trial's own values.
    """

    def __init__(self, search: SearchConfig, recipe: Recipe):
        self._search, self._recipe = search, recipe

    def wider(self, parameters: Sequence[ParameterAnswer]) -> str | None:
        """Goes on beyond the edges at which the best values are."""
        return self._with_domains(
            {
                each.name: self._within_length(each.name, wider(self._domain(each), each.best, self._unit(each.name)))
                for each in parameters
                if each.at_edge
            }
        )

    def finer(self, parameters: Sequence[ParameterAnswer]) -> str | None:
        """Has values between the best ones and their neighbours."""
        return self._with_domains(
            {each.name: finer(self._domain(each), each.best, self._unit(each.name)) for each in parameters}
        )

    def confirmed(self, num_candidates: int) -> str | None:
        """Trains the best candidates again."""
        if self._search.trial_scheduler.name in POPULATION_SCHEDULERS:
            return None
        return self._with({}, {}, confirm={"top": min(_CONFIRMED, num_candidates), "seeds": _SEEDS})

    def longer(self) -> str | None:
        """Twice the length, with twice the thresholds; or, where it is not fixed, twice the second stage."""
        length, num_steps = self._recipe.length, self._recipe.second_stage.num_steps
        if length is None or num_steps is not None:
            trials = dataclasses.replace(self._search.trials, extend=self._search.trials.extend + (num_steps or 0))
            refused = next(all_complaints(dataclasses.replace(self._search, trials=trials)), None)
            return self._with({}, {}, trials={"extend": trials.extend}) if refused is None else None
        values: dict[str, Plain] = {_LAST: 2 * self._recipe.transition.max_step}
        values["length.cost" if length.steps is None else "length.steps"] = 2 * (length.steps or length.total)
        domain = self._search.param_space.get(_THRESHOLD)
        if domain is None:
            return self._with({}, values)
        doubled = [2 * value if isinstance(value, int) else value for value in domain.values()]
        same_kind = type(domain)(tuple(doubled)) if isinstance(domain, Grid | Choice) else type(domain)(*doubled)
        return self._with({_THRESHOLD: same_kind}, values)

    def _domain(self, parameter: ParameterAnswer) -> Domain:
        return self._search.param_space[parameter.name]

    def _unit(self, name: str) -> int:
        """What a whole number must be a multiple of."""
        if name.startswith("transition."):
            return self._recipe.first_stage.report_every_steps
        return self._recipe.second_stage.report_every_steps if name == "second_stage.num_steps" else 1

    def _within_length(self, name: str, domain: Domain | None) -> Domain | None:
        """Without thresholds at or after the end of a trial: that is never leaving, which is a baseline."""
        longest = first_stage_steps(self._recipe)
        if name != _THRESHOLD or longest is None or not isinstance(domain, Grid | Choice):
            return domain
        before = self._search.param_space[name].values()
        left = [value for value in domain.listed if value < longest]
        return type(domain)(tuple(left)) if not set(left) <= set(before) else None

    def _with_domains(self, made: Mapping[str, Domain | None]) -> str | None:
        """With all of the domains that are accepted; None if none is."""
        domains = {name: domain for name, domain in made.items() if domain is not None}
        domains = {name: domain for name, domain in domains.items() if self._with({name: domain}, {}) is not None}
        return self._with(domains, {}) if domains else None

    def _with(self, domains: Mapping[str, Domain], of_recipe: Mapping[str, Plain], **own: Plain) -> str | None:
        """The command with other domains and values; None if the recipe or the search would be refused.

        Args:
            domains: By the name of the parameter.
            of_recipe: Values of the recipe, by dotted name.
            own: Values of the search's own, already known to be right.
        """
        of_recipe = {**self._bounds(domains.get(_THRESHOLD), of_recipe), **of_recipe}
        recipe = with_values_of_type(self._recipe, of_recipe)
        tried = ({name: value} for name, domain in domains.items() for value in domain.samples())
        if recipe is None or any(with_values_of_type(recipe, values) is None for values in tried):
            return None
        search = dataclasses.replace(self._search, param_space={**self._search.param_space, **domains})
        if next(all_complaints(search), None) is not None:
            return None
        made = {f"param_space.{name}": json.dumps(domain.as_dict()) for name, domain in domains.items()}
        made |= {name: json.dumps(value) for name, value in {**of_recipe, **own}.items()}
        file, *arguments = self._search.given
        arguments = [argument for argument in arguments if split_argument(argument)[0] not in made]
        arguments += [f"{name}={text}" for name, text in made.items()]
        return shlex.join([*program("tune").split(), file, *arguments])

    def _bounds(self, thresholds: Domain | None, given: Mapping[str, Plain]) -> dict[str, Plain]:
        """Bounds of stage one that make room for thresholds."""
        found = thresholds.extremes() if thresholds is not None else None
        if found is None:
            return {}
        (low, high), transition = found, self._recipe.transition
        bounds: dict[str, Plain] = {}
        if high > transition.max_step and _LAST not in given:
            bounds[_LAST] = high
        if low < transition.min_step:
            bounds[_FIRST] = low
        return bounds


def _has_seeds(search: SearchConfig, ranking: Ranking) -> bool:
    """Whether something is known of other seeds already."""
    several = any(len(candidate.trials) > 1 or candidate.is_confirmed for candidate in ranking.candidates)
    return several or search.confirm.top > 0 or any(name in SEEDS for name in search.param_space)


def _short(folder: str) -> str:
    """A folder, relative to the working directory if it is below."""
    if "://" in folder or not Path(folder).is_relative_to(Path.cwd()):
        return folder
    return str(Path(folder).relative_to(Path.cwd()))
