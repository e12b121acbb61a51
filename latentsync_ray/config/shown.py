"""A search as it was read: search space, overrides and recipe merged, with the place that each value comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from latentsync_ray.config.arguments import split_argument
from latentsync_ray.config.fields import in_yaml
from latentsync_ray.config.loading import STAGE_FILES
from latentsync_ray.config.plain import Plain, Settings, settings
from latentsync_ray.config.schema import inner_value
from latentsync_ray.config.searchfiles import load_search
from latentsync_ray.config.yamlfiles import read_value, read_yaml

_COLUMN = 56
"""Where comments begin."""
_Places = Sequence[tuple[str, Sequence[str]]]
"""Places, the first of which decides, and the dotted names that each of them gives a value to."""


def shown_search(file: str | Path, arguments: Sequence[str] = ()) -> str:
    """The search and its recipe as YAML; a comment names the place that gives a value.

    Args:
        file: The search space.
        arguments: `key=value` texts of a command line.

    Raises:
        UserError: A file is missing, an argument is no `key=value`, or a value breaks a rule.
    """
    search, recipe = load_search(file, arguments)
    merged, folder = {**settings(search), **settings(recipe)}, Path(search.recipe)
    stages = [(name, list(_names({stage: read_yaml(folder / name)}))) for stage, name in STAGE_FILES.items()]
    places = [
        ("searched, here as in the recipe", list(search.param_space)),
        ("argument", [name for argument in arguments for name in _given(argument, merged)]),
        ("overrides", list(_names(search.overrides))),
        (Path(file).name, list(_names(read_yaml(Path(file))))),
        ("recipe.yaml", list(_names(read_yaml(folder / "recipe.yaml")))),
        *stages,
    ]
    return "\n".join(_lines(merged, places))


def _given(argument: str, merged: Settings) -> Iterator[str]:
    """Dotted names of what a `key=value` argument gives; in a section it leaves the other values as they are."""
    key, text = split_argument(argument)
    is_section = isinstance(inner_value(merged, key), dict)
    return _names({key: read_value(text, argument) if is_section else None})


def _names(values: Mapping[str, Plain], prefix: str = "") -> Iterator[str]:
    """Dotted names of all values that are no mappings, and of empty mappings."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _names(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def _lines(values: Mapping[str, Plain], places: _Places, prefix: str = "", indent: str = "") -> Iterator[str]:
    """The YAML of a mapping: a line for each value, or for the name of a section and then its lines."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{name}:"
            yield from _lines(value, places, f"{prefix}{name}.", indent + "  ")
        else:
            yield f"{f'{indent}{name}: {in_yaml(value)}':{_COLUMN}} # {_place(prefix + name, places)}"


def _place(name: str, places: _Places) -> str:
    """The place that gives a value, itself or with a section around it."""
    found = (place for place, given in places if any(f"{name}.".startswith(f"{other}.") for other in given))
    return next(found, "default")
