"""Where a search comes from: its command, settings and recipe, kept in its folder when it begins.

`search.yaml` names the recipe beside it, so that `tune FOLDER/search.yaml` runs the same search again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import yaml

from latentsync_ray.config.errors import UserError
from latentsync_ray.config.loading import recipe_files, with_overrides
from latentsync_ray.config.plain import Plain, plain, settings
from latentsync_ray.config.recipe import Recipe
from latentsync_ray.config.schema import inner_value
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.config.searchfiles import search_from_plain
from latentsync_ray.config.yamlfiles import one_line
from latentsync_ray.store import Store

SEARCH_FILE, COMMAND_FILE, RECIPE_FOLDER = "search.yaml", "command.txt", "recipe"


@dataclass(frozen=True)
class Origin:
    """Where a search comes from."""

    search: SearchConfig
    """What was asked."""
    command: str
    """As it was typed; empty if it was no command."""
    files: Mapping[str, str]
    """YAML texts of `search.yaml` and of the recipe's files, by their names in the search's folder."""


def write_origin(store: Store, folder: str, search: SearchConfig, recipe: Recipe, command: str) -> None:
    """Keeps where a search comes from.

    Args:
        store: Where the search is kept.
        folder: The search's folder below the store's root.
        search: What is asked.
        recipe: As the user has given it.
        command: As it was typed; empty if it was no command.
    """
    overrides = {name: _held(recipe, name, value) for name, value in search.overrides.items()}
    kept = replace(search, recipe=RECIPE_FOLDER, overrides=overrides, storage=store.uri, given=())
    texts = {f"{RECIPE_FOLDER}/{name}": text for name, text in recipe_files(recipe).items()}
    texts[SEARCH_FILE] = yaml.safe_dump(settings(kept), sort_keys=False)
    for name, text in {**texts, COMMAND_FILE: f"{command}\n"}.items():
        store.write_bytes(f"{folder}/{name}", text.encode())


def read_origin(store: Store, folder: str) -> Origin:
    """What `write_origin` has kept.

    Raises:
        UserError: It is not there, or was changed so that it cannot be read.
    """
    names = [SEARCH_FILE, COMMAND_FILE]
    names += [f"{RECIPE_FOLDER}/{name}" for name in store.list_files(f"{folder}/{RECIPE_FOLDER}")]
    texts = {name: (store.read_bytes(f"{folder}/{name}") or b"").decode() for name in names}
    where = f"{store.uri_of(folder)}/{SEARCH_FILE}"
    try:
        values = yaml.safe_load(texts[SEARCH_FILE])
    except yaml.YAMLError as error:
        raise UserError(f"{where}: is no YAML ({one_line(error)}); run the search's command again") from None
    if not isinstance(values, dict):
        raise UserError(f"{where}: must say what was searched, is missing; run the search's command again")
    command = texts.pop(COMMAND_FILE).strip()
    return Origin(search_from_plain(values, where), command, texts)


def _held(recipe: Recipe, name: str, value: Plain) -> Plain:
    """An override's value, or the recipe's where an argument has replaced it."""
    return value if with_overrides(recipe, {name: value}) == recipe else plain(inner_value(recipe, name))
