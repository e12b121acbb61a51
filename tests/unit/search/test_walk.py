"""What a trial tells the engine with its question."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from latentsync_ray.config.loading import load_recipe
from latentsync_ray.core.trial_recipe import TrialRecipe
from latentsync_ray.engine.messages import Branch
from latentsync_ray.search.walk import TrialSetup, Walk

ROOT = Path(__file__).resolve().parents[3]


class AskedError(Exception):
    """Carries what the engine was asked."""


def ask(*question: Any) -> None:
    raise AskedError(*question)


def test_a_trial_in_stage_one_says_where_it_may_leave() -> None:
    recipe = load_recipe(ROOT / "configs" / "demo", {"transition.plateau": None})
    setup = TrialSetup("engine", TrialRecipe.of(recipe), {}, {}, share=True)
    walk = Walk(
        setup, SimpleNamespace(run=SimpleNamespace(remote=ask)), "trial-0000", {"transition.at_step": 80}, "0"
    )
    with pytest.raises(AskedError) as asked:
        walk.step()
    assert asked.value.args[-1] == Branch(80, recipe.second_stage.num_workers)
