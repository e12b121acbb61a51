"""Reads search spaces, each one file that names a recipe, with `key=value` arguments for both."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latentsync_ray.config.arguments import Argument
from latentsync_ray.config.checks import check_fixed, check_search
from latentsync_ray.config.domains import Domain, read_domain
from latentsync_ray.config.errors import UserError
from latentsync_ray.config.loading import load_recipe, with_overrides
from latentsync_ray.config.plain import Plain, Settings, is_plain
from latentsync_ray.config.recipe import Recipe
from latentsync_ray.config.schema import checked, merged, merged_into, nested
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.config.yamlfiles import read_yaml

_SEARCH_KEYS = frozenset(f.name for f in dataclasses.fields(SearchConfig) if is_plain(f))
_TRAINING_KEYS = frozenset(("name", "storage", "workers", "budget", "trials", "environment", "share", "trackers"))
"""What may be set where there is one trial; the rest of a search chooses and compares trials."""


def load_search(
    file: str | Path, arguments: Sequence[str] = (), values: Mapping[str, Any] | None = None
) -> tuple[SearchConfig, Recipe]:
    """Reads a search space file and the recipe that it names.

    Args:
        file: The search space.
        arguments: `key=value` texts of a command line, for the search or its recipe.
        values: The same as plain values by dotted name.

    Raises:
        UserError: A file is missing, an argument is no `key=value`, or a value breaks a rule.
    """
    file = Path(file)
    content = {"name": file.stem} | read_yaml(file)
    recipe = content.get("recipe")
    if isinstance(recipe, str):
        content["recipe"] = _folder(file.parent, recipe, f"{file}: recipe")
    given = _given(arguments, values)
    search, read = _search(content, file, given)
    return dataclasses.replace(search, given=(str(file), *map(str, given))), read


def search_from_plain(values: Settings, where: str) -> SearchConfig:
    """The search whose plain form this is.

    Args:
        values: What `settings` has made of it.
        where: What to call the place where they come from in an error.

    Raises:
        UserError: They are something else.
    """
    file = Path(where)
    rest = {name: value for name, value in values.items() if name != "param_space"}
    space = _param_space(values.get("param_space"), file)
    return checked(SearchConfig, merged(SearchConfig, rest, {"": file}), {"": file}, param_space=space)


def search_of_one(
    recipe_folder: str | Path, arguments: Sequence[str] = (), values: Mapping[str, Any] | None = None
) -> tuple[SearchConfig, Recipe]:
    """The search whose only trial is the recipe itself: a plain two-stage training; see `load_search`.

    Raises:
        UserError: A file is missing, an argument is no `key=value` or belongs to a search, or a value breaks a rule.
    """
    folder = Path(recipe_folder).resolve()
    given = _given(arguments, values)
    for argument in given:
        if argument.key.partition(".")[0] in _SEARCH_KEYS - _TRAINING_KEYS:
            rule = "belongs to a search, and train trains one recipe"
            raise UserError(f"argument {str(argument)!r}: {rule}; remove it, or use the command tune")
    content: Settings = {
        "recipe": str(folder),
        "name": f"train-{folder.name}",
        "trial_scheduler": {"name": "fifo"},
        "workers": {"max_groups": 1},
        "baselines": False,
    }
    return _search(content, folder, given)


def _given(arguments: Sequence[str], values: Mapping[str, Any] | None) -> list[Argument]:
    return [*map(Argument.parse, arguments), *(Argument(key, None, value) for key, value in (values or {}).items())]


def _search(values: Settings, file: Path, arguments: Sequence[Argument]) -> tuple[SearchConfig, Recipe]:
    """Splits arguments between the search and its recipe, and validates both with the space."""
    own: Settings = {}
    fixed: dict[str, Argument] = {}
    of_recipe: dict[str, Argument] = {}
    for argument in arguments:
        head, _, name = argument.key.partition(".")
        if head == "overrides" and name:
            fixed[name] = argument
        elif head == "param_space" and name:
            _put(values, head, name, argument.read(dict, name))
        elif head in ("param_space", "overrides"):
            values[head] = argument.read(dict, head)
        elif head in _SEARCH_KEYS:
            own[argument.key] = argument.read(SearchConfig, argument.key)
        else:
            of_recipe[argument.key] = argument
    folder = own.get("recipe")
    if isinstance(folder, str):
        own["recipe"] = _folder(Path.cwd(), folder, "argument recipe")
    param_space = _param_space(values.pop("param_space", {}), file)
    node = merged(SearchConfig, values, {"": file})
    for key, value in own.items():
        node = merged_into(node, nested(key, value), {"": Path(f"argument {key}")}, named=True)
    search = checked(SearchConfig, node, {"": file}, param_space=param_space)
    recipe = load_recipe(search.recipe)
    recipe_overrides = {name: argument.read(type(recipe), name) for name, argument in of_recipe.items()}
    overrides = {name: argument.read(type(recipe), name) for name, argument in fixed.items()}
    search = dataclasses.replace(search, overrides={**search.overrides, **overrides})
    check_fixed(param_space, search.overrides, f"{file}: overrides")
    check_fixed(param_space, recipe_overrides, "argument")
    recipe = with_overrides(recipe, search.overrides, f"{file}: overrides", file.parent)
    recipe = with_overrides(recipe, recipe_overrides, "argument")
    check_search(search, recipe, str(file))
    return search, recipe


def _put(values: Settings, section: str, name: str, value: Plain) -> None:
    """Replaces one entry of a section whose keys are dotted names."""
    before = values.get(section)
    values[section] = {**(before if isinstance(before, dict) else {}), name: value}


def _param_space(entries: Plain, file: Path) -> dict[str, Domain]:
    """Domains by dotted name, sorted."""
    if entries is None:
        return {}
    if not isinstance(entries, dict):
        raise UserError(
            f"{file}: param_space: must map names to values, got {entries!r}; e.g. seed: {{grid: [1, 2]}}"
        )
    return {name: read_domain(entries[name], f"{file}: param_space.{name}") for name in sorted(entries)}


def _folder(base: Path, folder: str, where: str) -> str:
    """A folder that may be relative or begin with `~`, made absolute."""
    try:
        return str((base / Path(folder).expanduser()).resolve())
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"{where}: must be a folder, got {folder!r} ({error}); name another") from None
