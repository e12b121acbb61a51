"""A stored segment that a search goes on from: found by its key, its lineage checked against the recipe."""

from __future__ import annotations

from latentsync_ray.cli import program
from latentsync_ray.config.errors import UserError
from latentsync_ray.config.length import second_stage_steps
from latentsync_ray.config.plain import plain
from latentsync_ray.config.recipe import SECOND_STAGE, Recipe
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.core.record import Record
from latentsync_ray.core.segment import Segment
from latentsync_ray.store import DamagedEntryError, Store


def lineage_of(store: Store, search: SearchConfig, recipe: Recipe, root: str) -> list[Segment]:
    """All segments from step 0 to `search.start_from`, oldest first; none if it is not given.

    Args:
        store: Where they are.
        search: What is asked.
        recipe: Under which training goes on.
        root: The recipe's root key.

    Raises:
        UserError: There is no such segment, or the recipe cannot go on from it.
    """
    if search.start_from is None:
        return []
    lineage = [find_record(store, search.start_from, "start_from").segment]
    while lineage[0].parent != root:
        parent = _read(store, lineage[0].parent, "start_from")
        if parent is None:
            raise UserError(
                f"start_from: {lineage[-1].key} was trained with other data, networks, validation, training or seed; "
                f"use its recipe, or export its UNet ({program('export')}) and give that as components.unet"
            )
        lineage.insert(0, parent.segment)
    _check(search, recipe, lineage[-1])
    return lineage


def find_record(store: Store, beginning: str, option: str) -> Record:
    """The record of the only segment whose key begins so.

    Args:
        store: Where it is.
        beginning: Of the key; all of it at most.
        option: Where the user has given it.

    Raises:
        UserError: There is none, there are several, or it is damaged.
    """
    found = [key for key in store.list_folders("segments") if key.startswith(beginning)]
    records = [record for record in (_read(store, key, option) for key in found) if record is not None]
    if len(records) == 1:
        return records[0]
    if records:
        raise UserError(f"{option}: {len(records)} keys begin with {beginning}; give more of it")
    raise UserError(
        f"{option}: must be the key of a segment in {store.root}, or its beginning, got {beginning}; the keys of a "
        "search are in its trials.json"
    )


def _read(store: Store, key: str, option: str) -> Record | None:
    try:
        return store.read_record(key)
    except DamagedEntryError as error:
        raise UserError(f"{option}: {error}; run the search again that trained it, or name another") from None


def _check(search: SearchConfig, recipe: Recipe, last: Segment) -> None:
    """The recipe must be able to take the state up."""
    for name in search.param_space:
        if name == "seed":
            raise UserError(f"param_space.{name}: must stay the same for trials that start from a segment; remove it")
    stage = getattr(recipe, last.stage)
    for name in recipe.shape_settings:
        stored, asked = last.config.get(name), plain(getattr(stage, name))
        if stored != asked:
            raise UserError(
                f"{last.stage}.{name}: must be that of {last.key[:12]}, {stored}, got {asked}; use its recipe's, or "
                "start from another segment"
            )
    behind = last.end_step - last.stage_start_step
    whole = second_stage_steps(recipe, last.stage_start_step) if last.stage == SECOND_STAGE else behind + 1
    if whole <= behind:
        name = "length" if recipe.second_stage.num_steps is None else "second_stage.num_steps"
        raise UserError(
            f"{name}: must be above the {behind} steps of stage two that {last.key[:12]} has behind it, got {whole}; "
            "raise it"
        )
