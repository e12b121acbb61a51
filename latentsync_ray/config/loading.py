"""Reads recipes from folders of YAML files, applies values by dotted name, and writes recipes.

A recipe is a folder of three files: `recipe.yaml` (training, seed, transition, and the training's own sections) and
the two stage files `first_stage.yaml` and `second_stage.yaml`. Its training says by which class it is read.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from latentsync_ray.config.errors import UserError
from latentsync_ray.config.plain import Settings, plain, settings
from latentsync_ray.config.recipe import Recipe, StageConfig
from latentsync_ray.config.schema import all_complaints, checked, inner_value, merged, resolve_paths, with_values_in
from latentsync_ray.config.trainings import absolute, recipe_type
from latentsync_ray.config.yamlfiles import read_yaml

STAGE_FILES = {"first_stage": "first_stage.yaml", "second_stage": "second_stage.yaml"}
_RecipeT = TypeVar("_RecipeT", bound=Recipe)


def load_recipe(folder: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Reads a recipe folder, applies overrides by dotted name, and validates the whole.

    Args:
        folder: Holds `recipe.yaml`, `first_stage.yaml` and `second_stage.yaml`.
        overrides: For example `{"transition.at_step": 160}`.

    Raises:
        UserError: A file is missing or unreadable, or a value breaks a rule.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such recipe folder; name one that holds recipe.yaml and the stage files")
    origins = {"": folder / "recipe.yaml"} | {stage: folder / name for stage, name in STAGE_FILES.items()}
    top = read_yaml(origins[""])
    for stage in STAGE_FILES:
        if stage in top:
            raise UserError(f"{origins['']}: {stage}: belongs into its own file; move it to {origins[stage]}")
        top[stage] = read_yaml(origins[stage])
    training = top.get("training", Recipe.training)
    if not isinstance(training, str):
        raise UserError(
            f"{origins['']}: training: must be text, got {training!r}; write module:Class or file.py:Class"
        )
    top["training"] = training = absolute(training, folder)
    schema = recipe_type(training)
    node = merged(schema, top, origins)
    resolve_paths(node, folder, schema.folders, schema.sources)
    return with_overrides(checked(schema, node, origins), overrides or {})


def with_overrides(
    recipe: _RecipeT, overrides: Mapping[str, Any], origin: str = "override", base: Path | None = None
) -> _RecipeT:
    """The recipe with some values replaced by dotted name, validated again.

    Args:
        recipe: The recipe to start from.
        overrides: Dotted names and values.
        origin: What to call the place where the overrides come from in an error.
        base: What relative folders among them are relative to; the working directory unless it is given.

    Raises:
        UserError: A name does not exist, or a value breaks a rule.
    """
    if not overrides:
        return recipe
    if "training" in overrides and overrides["training"] != recipe.training:
        rule = "must be given in recipe.yaml, since it says what a recipe holds"
        raise UserError(f"{origin}: training: {rule}, got {overrides['training']!r}; write it there")
    node = with_values_in(recipe, overrides, origin)
    resolve_paths(node, base or Path.cwd(), recipe.folders, recipe.sources)
    return checked(type(recipe), node, {"": Path(origin)})


def with_values_of_type(recipe: _RecipeT, values: Mapping[str, Any]) -> _RecipeT | None:
    """The recipe with some values replaced that have their fields' types already; None if they break a rule.

    Args:
        recipe: The recipe to start from.
        values: By dotted name; sections that hold them must be there.
    """
    made = recipe
    for name, value in values.items():
        made = _replaced(made, name.split("."), value)
    return made if next(all_complaints(made), None) is None else None


class Variants:
    """The recipes of many trials: what `with_overrides` gives, in microseconds where it takes milliseconds.

    Args:
        recipe: The recipe that all of them start from.
        origin: What to call the place where their values come from in an error.
    """

    def __init__(self, recipe: Recipe, origin: str = "param_space"):
        self._recipe, self._origin = recipe, origin
        self._read: dict[tuple[str, str], Any] = {}

    def recipe(self, values: Mapping[str, Any]) -> Recipe:
        """The recipe with some values replaced by dotted name.

        Raises:
            UserError: A name does not exist, or the values break a rule.
        """
        if all(inner_value(self._recipe, name.rpartition(".")[0]) is not None for name in values):
            with contextlib.suppress(UserError):  # a value that breaks a rule alone may be right beside the others
                read = {name: self._as_read(name, value) for name, value in values.items()}
                made = with_values_of_type(self._recipe, read)
                if made is not None:
                    return made
        # Makes what is not there, and says what breaks a rule.
        return with_overrides(self._recipe, values, self._origin)

    def _as_read(self, name: str, value: Any) -> Any:
        before = inner_value(self._recipe, name)
        if type(before) in (int, float) and type(value) in (int, type(before)):
            return type(before)(value)
        if (name, repr(value)) not in self._read:
            self._read[name, repr(value)] = inner_value(with_overrides(self._recipe, {name: value}), name)
        return self._read[name, repr(value)]


def _replaced(config: Any, parts: list[str], value: Any) -> Any:
    if len(parts) > 1:
        inner = config.get(parts[0]) if isinstance(config, dict) else getattr(config, parts[0])
        value = _replaced(inner, parts[1:], value)
    if isinstance(config, dict):
        return {**config, parts[0]: value}
    return dataclasses.replace(config, **{parts[0]: value})


def recipe_from_plain(schema: type[_RecipeT], values: Settings) -> _RecipeT:
    """The recipe whose plain form this is, for a process that shares no objects with the one that read it."""
    return checked(schema, merged(schema, values, {"": Path("recipe")}), {"": Path("recipe")})


def stage_config(recipe: Recipe, stage: str, values: Settings) -> StageConfig:
    """The configuration of a stage that a segment's settings stand for; what they leave out is the recipe's own.

    Raises:
        UserError: They break a rule, as values that a search draws may.
    """
    own = getattr(recipe, stage)
    values = {**{name: plain(getattr(own, name)) for name in recipe.not_in_segments}, **values}
    config = checked(type(own), merged(type(own), values, {"": Path(stage)}), {"": Path(stage)})
    assert isinstance(config, StageConfig)
    return config


def recipe_files(recipe: Recipe) -> dict[str, str]:
    """File name -> YAML text of a recipe folder from which the same training starts again."""
    values = settings(recipe)
    stages = {file: values.pop(stage) for stage, file in STAGE_FILES.items()}
    contents = {"recipe.yaml": values, **stages}
    return {file: yaml.safe_dump(content, sort_keys=False) for file, content in contents.items()}
