"""What a search keeps of its command, settings and recipe, and that the same search can be run from that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from latentsync_ray.config.errors import UserError
from latentsync_ray.config.searchfiles import load_search
from latentsync_ray.report.origin import read_origin, write_origin
from latentsync_ray.search.job import search_folder
from latentsync_ray.store import Store

ROOT = Path(__file__).parents[3]
FOLDER = "searches/s"


@pytest.mark.parametrize("name", ["transition", "plateau", "pbt"])
def test_the_kept_search_is_the_same_search(name: str, tmp_path: Path) -> None:
    search, recipe = load_search(ROOT / "search_spaces" / f"{name}.yaml", [f"storage={tmp_path}"])
    store = Store(str(tmp_path))
    write_origin(store, FOLDER, search, recipe, "a command")
    kept, kept_recipe = load_search(tmp_path / FOLDER / "search.yaml")
    assert replace(kept, recipe=search.recipe) == search and kept_recipe == recipe
    assert search_folder(kept, kept_recipe, {}) == search_folder(search, recipe, {})

    origin = read_origin(store, FOLDER)
    assert replace(origin.search, recipe=search.recipe) == search and origin.command == "a command"
    stages = ["recipe/first_stage.yaml", "recipe/recipe.yaml", "recipe/second_stage.yaml"]
    assert sorted(origin.files) == [*stages, "search.yaml"]


def test_an_argument_that_replaced_an_override_stays_in_force(tmp_path: Path) -> None:
    overrides = ["overrides.second_stage.num_steps=80", "second_stage.num_steps=40", f"storage={tmp_path}"]
    search, recipe = load_search(ROOT / "search_spaces" / "transition.yaml", overrides)
    assert search.overrides["second_stage.num_steps"] == 80 and recipe.second_stage.num_steps == 40
    write_origin(Store(str(tmp_path)), FOLDER, search, recipe, "")
    _, kept_recipe = load_search(tmp_path / FOLDER / "search.yaml")
    assert kept_recipe == recipe


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "must say what was searched, is missing; run the search's command again"),
        ("[1]", "must say what was searched, is missing; run the search's command again"),
        ("name: s\nrecipe: recipe\nmode: least", "mode:"),
        ("{", "search.yaml"),
    ],
)
def test_what_cannot_be_read_is_told(text: str | None, said: str, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    if text is not None:
        store.write_bytes(f"{FOLDER}/search.yaml", text.encode())
    with pytest.raises(UserError) as error:
        read_origin(store, FOLDER)
    assert str(error.value).startswith(f"{tmp_path}/{FOLDER}/search.yaml: ") and said in str(error.value)
