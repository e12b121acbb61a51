"""Which stored segments a search can go on from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from records import make_trained

from latentsync_ray.config.domains import Grid
from latentsync_ray.config.errors import UserError
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.config.transition import TransitionConfig
from latentsync_ray.core.segment import Segment
from latentsync_ray.core.trial_recipe import TrialRecipe
from latentsync_ray.latentsync.config import (
    ComponentsConfig,
    LatentSyncRecipe,
    LatentSyncSecondStage,
    LatentSyncStage,
)
from latentsync_ray.latentsync.data.config import DataConfig
from latentsync_ray.planning.simulation import PlannedTrial
from latentsync_ray.store import Store
from latentsync_ray.store.lineage import lineage_of

RECIPE = LatentSyncRecipe(
    data=DataConfig(folder="/clips"),
    components=ComponentsConfig(vae="/vae"),
    transition=TransitionConfig(at_step=40, max_step=80),
    first_stage=LatentSyncStage(model={"width": 1}, report_every_steps=20),
    second_stage=LatentSyncSecondStage(model={"width": 2}, report_every_steps=10, num_steps=20),
)
ROOT = TrialRecipe.of(RECIPE).root_key({})


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Store, list[Segment]]:
    """A store with the trial of the recipe: 20 and 40 in stage one, 50 and 60 in stage two; some states dropped."""
    store, segments = Store(str(tmp_path)), list[Segment]()
    for segment in PlannedTrial(0, TrialRecipe.of(RECIPE), ROOT).walk():
        store.publish(make_trained(segment), {"model.weight": torch.zeros(1)})
        segments.append(segment)
    store.drop_state(segments[0].key)
    store.drop_state(segments[2].key)
    return store, segments


def search(start: str | None, **settings: object) -> SearchConfig:
    return SearchConfig("recipe", "search", start_from=start, **settings)  # type: ignore[arg-type]


def test_a_lineage_goes_back_to_the_beginning(trained: tuple[Store, list[Segment]]) -> None:
    store, segments = trained
    assert [segment.end_step for segment in segments] == [20, 40, 50, 60]
    for number, segment in enumerate(segments[:3]):
        assert lineage_of(store, search(segment.key[:16]), RECIPE, ROOT) == segments[: number + 1]
    assert lineage_of(store, search(None), RECIPE, ROOT) == []


def test_what_cannot_be_gone_on_from_is_said_in_one_line(trained: tuple[Store, list[Segment]]) -> None:
    store, segments = trained
    first, last = segments[0], segments[-1]
    wider = dataclasses.replace(RECIPE, first_stage=LatentSyncStage(model={"width": 3}, report_every_steps=20))
    other_root = TrialRecipe.of(RECIPE).root_key({"data": "other"})
    cases = [
        (search("x" * 64), RECIPE, ROOT, "must be the key of a segment"),
        (search(""), RECIPE, ROOT, "4 keys begin"),
        (
            search(first.key),
            RECIPE,
            other_root,
            "was trained with other data",
        ),
        (search(first.key), wider, ROOT, "first_stage.model: must be that of"),
        (search(last.key), RECIPE, ROOT, "must be above the 20 steps of stage two"),
        (search(first.key, param_space={"seed": Grid((1,))}), RECIPE, ROOT, "param_space.seed: must stay"),
    ]
    for asked, recipe, root, line in cases:
        with pytest.raises(UserError) as error:
            lineage_of(store, asked, recipe, root)
        assert line in str(error.value) and "\n" not in str(error.value)

    longer = dataclasses.replace(RECIPE.second_stage, num_steps=30)
    assert lineage_of(store, search(last.key), dataclasses.replace(RECIPE, second_stage=longer), ROOT) == segments
    (Path(store.root) / "segments" / first.key / "record.json").write_text("{")
    with pytest.raises(UserError, match="is no whole file"):
        lineage_of(store, search(last.key[:20]), dataclasses.replace(RECIPE, second_stage=longer), ROOT)
