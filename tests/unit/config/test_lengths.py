"""What a search space names is not read from the recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latentsync_ray.cluster import ray_internals
from latentsync_ray.cluster.resources import _group_sizes
from latentsync_ray.config.domains import Choice, Domain, Grid, RandInt
from latentsync_ray.config.errors import UserError
from latentsync_ray.config.lengths import extremes, longest_trial
from latentsync_ray.config.loading import load_recipe
from latentsync_ray.config.recipe import Recipe
from latentsync_ray.config.search import SearchConfig, TrialSchedulerConfig
from latentsync_ray.config.searchfiles import load_search
from latentsync_ray.planning.plan import plan_trials
from latentsync_ray.report.remaining import Ends, StepsLeft
from latentsync_ray.report.trials import Boundary, TrialResult
from latentsync_ray.search.journal import Journal
from latentsync_ray.search.schedulers import make_scheduler
from latentsync_ray.store import Store

ROOT = Path(__file__).resolve().parents[3]
NUM_STEPS, MAX_STEP = "second_stage.num_steps", "transition.max_step"


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    """Stage one in segments of 20 steps up to 1000, stage two 8 steps in segments of 4."""
    steps = {NUM_STEPS: 8, "second_stage.report_every_steps": 4, "transition.plateau": None}
    return load_recipe(ROOT / "configs" / "demo", {**steps, MAX_STEP: 1000, "transition.at_step": 400})


def search(**space: Domain) -> SearchConfig:
    names = {
        "num_steps": NUM_STEPS,
        "max_step": MAX_STEP,
        "stage": "second_stage",
        "workers": "first_stage.num_workers",
    }
    return SearchConfig("r", "s", param_space={names[name]: domain for name, domain in space.items()})


@pytest.mark.parametrize(
    ("space", "lengths"),
    [
        ({}, (1000, 8)),
        ({"num_steps": Grid((16, 24, 8))}, (1000, 24)),
        ({"num_steps": Choice((4,))}, (1000, 4)),
        ({"num_steps": RandInt(4, 33), "max_step": Grid((600, 800))}, (800, 32)),
        ({"stage": Grid(({"num_steps": 16}, {"report_every_steps": 8}))}, (1000, 16)),
        ({"stage": Grid(({"report_every_steps": 8}, {"num_steps": 4}))}, (1000, 8)),
    ],
)
def test_the_longest_trial(space: dict[str, Domain], lengths: tuple[int, int], recipe: Recipe) -> None:
    longest = longest_trial(search(**space), recipe)
    assert (longest.first_stage, longest.second_stage) == lengths
    assert longest.of("second_stage_step") == lengths[1] and longest.of("global_step") == sum(lengths)


@pytest.mark.parametrize("name", ["asha", "hyperband"])
def test_schedulers_end_no_trial_before_the_longest(name: Any, recipe: Recipe, tmp_path: Path) -> None:
    settings = TrialSchedulerConfig(name=name, grace_period=4)
    asked = dataclasses.replace(search(num_steps=Grid((8, 16, 24))), trial_scheduler=settings)
    scheduler = make_scheduler(asked, recipe, Journal(Store(str(tmp_path)), "decisions"), lambda trial, key: None)
    inner = getattr(scheduler, "_scheduler", scheduler)
    assert getattr(inner, "_max_t", None) == 24 or inner._max_t_attr == 24


@pytest.mark.parametrize("promote", [False, True])
def test_rungs_may_follow_each_other_at_a_distance(promote: bool, recipe: Recipe, tmp_path: Path) -> None:
    settings = TrialSchedulerConfig("asha", promote=promote, grace_period=4, rung_interval=6, reduction_factor=3)
    assert settings.rungs(22) == [4, 10, 16, 22]
    assert TrialSchedulerConfig("asha", grace_period=4, reduction_factor=2).rungs(22) == [4, 8, 16]
    asked = dataclasses.replace(search(num_steps=Grid((8, 16, 24))), trial_scheduler=settings)
    scheduler = make_scheduler(asked, recipe, Journal(Store(str(tmp_path)), "decisions"), lambda trial, key: None)
    found = (
        [rung.milestone for rung in scheduler._rungs]
        if promote
        else ray_internals.milestones(scheduler._scheduler)[::-1]
    )
    assert found == [4, 10, 16, 22]


def test_groups_of_all_sizes_are_looked_at(recipe: Recipe) -> None:
    assert _group_sizes(search(workers=Grid((2, 4))), recipe) == {1, 2, 4}
    assert extremes(search(workers=RandInt(2, 5)), recipe, "first_stage.num_workers") == (2, 4)


def test_what_is_left_of_a_trial_is_its_own(recipe: Recipe) -> None:
    ends = Ends(recipe)
    assert ends.steps_left(TrialResult(0, {})) == StepsLeft(400, 8)
    assert ends.steps_left(TrialResult(0, {NUM_STEPS: 24, "transition.at_step": 600})) == StepsLeft(600, 24)
    second = Boundary("key", "parent", "second_stage", 404, 4, {})
    assert ends.steps_left(TrialResult(0, {NUM_STEPS: 24}, (second,))) == StepsLeft(0, 20)
    assert ends.steps_left(TrialResult(0, {NUM_STEPS: 9})) == StepsLeft(0, 0)  # it will fail


def test_a_plan_walks_each_trial_to_its_own_end(recipe: Recipe) -> None:
    planned = plan_trials(search(num_steps=Grid((8, 16, 24))), recipe)
    ends = [sum(segment.num_steps for segment in trial.walk()) for trial in planned]
    assert ends == [408, 416, 424]


def space_file(folder: Path, text: str) -> Path:
    file = folder / "space.yaml"
    file.write_text(f"recipe: {ROOT}/configs/demo\noverrides: {{transition.plateau: null}}\n{text}")
    return file


def test_a_grace_period_may_be_as_long_as_the_longest_trial(tmp_path: Path) -> None:
    text = "param_space: {second_stage.num_steps: {grid: [80, 160]}}\ntrial_scheduler: {grace_period: %d}\n"
    load_search(space_file(tmp_path, text % 160), [])
    with pytest.raises(UserError, match=r"grace_period: must not be above .* \(160\), got 161"):
        load_search(space_file(tmp_path, text % 161), [])


def test_only_combinations_count(tmp_path: Path) -> None:
    """Each value breaks a rule beside the recipe's other one, and none beside the other values."""
    text = "param_space: {second_stage.report_every_steps: {%s: [7]}, second_stage.num_steps: {%s: [77, 14]}}\n"
    arguments = ["trial_scheduler.grace_period=7"]
    for kinds in (("grid", "grid"), ("choice", "choice"), ("choice", "grid")):
        search, _ = load_search(space_file(tmp_path, text % kinds), arguments)
        assert len(search.param_space) == 2


@pytest.mark.parametrize("order", [lambda names: names, reversed])
def test_the_order_in_a_file_decides_nothing(order: Callable[..., Any], tmp_path: Path) -> None:
    entries = ["second_stage.optimizer.lr: {uniform: [0.1, 0.2]}", "second_stage.loss.sync: {uniform: [0.1, 0.2]}"]
    search, recipe = load_search(space_file(tmp_path, f"param_space: {{{', '.join(order(entries))}}}\n"), [])
    assert list(search.param_space) == ["second_stage.loss.sync", "second_stage.optimizer.lr"]
    drawn = plan_trials(search, recipe)[0].recipe.stages["second_stage"]
    assert drawn["loss"]["sync"] == pytest.approx(0.1844, abs=1e-4)
    assert drawn["optimizer"]["lr"] == pytest.approx(0.1758, abs=1e-4)
