"""Plans: what is counted, and searches on a virtual clock, small ones by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.search.variant_generator import generate_variants

from latentsync_ray.api import load_search
from latentsync_ray.config.domains import read_domain
from latentsync_ray.config.errors import UserError
from latentsync_ray.config.recipe import FIRST_STAGE, SECOND_STAGE
from latentsync_ray.config.search import SearchConfig, TrialSchedulerConfig
from latentsync_ray.config.transition import TransitionConfig
from latentsync_ray.core.segment import Segment
from latentsync_ray.latentsync.config import (
    ComponentsConfig,
    LatentSyncRecipe,
    LatentSyncSecondStage,
    LatentSyncStage,
)
from latentsync_ray.latentsync.data.config import DataConfig
from latentsync_ray.plan import main
from latentsync_ray.planning.plan import Plan, Simulated, plan_trials, simulate
from latentsync_ray.planning.simulation import Costs, RandomRungs
from latentsync_ray.search.suggestions import tune_domain

COSTS = Costs({FIRST_STAGE: 1.0, SECOND_STAGE: 2.0}, startup_seconds=5.0, idle_seconds=20.0)
FIFO = TrialSchedulerConfig(name="fifo")
LR, AT_STEP = "second_stage.optimizer.lr", "transition.at_step"


def new_recipe(num_workers: tuple[int, int] = (1, 1)) -> LatentSyncRecipe:
    """Stage one in segments of 20 steps, stage two in one of 10."""
    return LatentSyncRecipe(
        data=DataConfig(folder="/clips"),
        components=ComponentsConfig(vae="/vae", syncnet="/syncnet", lpips="/lpips", video_encoder="/video"),
        transition=TransitionConfig(at_step=20, max_step=1000),
        first_stage=LatentSyncStage(model={}, batch_size=2, num_workers=num_workers[0]),
        second_stage=LatentSyncSecondStage(
            model={}, batch_size=2, num_workers=num_workers[1], report_every_steps=10, num_steps=10
        ),
    )


def new_search(space: dict[str, Any], scheduler: TrialSchedulerConfig = FIFO, **values: Any) -> SearchConfig:
    domains = {name: read_domain(entry, name) for name, entry in space.items()}
    return SearchConfig(recipe="r", name="s", param_space=domains, trial_scheduler=scheduler, **values)


def two_trials(num_gpus: int) -> Simulated:
    search, recipe = new_search({AT_STEP: {"grid": [20, 40]}}), new_recipe()
    return simulate(search, recipe, plan_trials(search, recipe), num_gpus, COSTS)


def test_two_trials_that_share_a_trunk_on_two_gpus() -> None:
    simulated = two_trials(2)
    assert simulated.bound_gpu_seconds == 40 + 2 * 20
    assert simulated.bound_makespan_seconds == 40 + 20
    # One group starts (5 s) and trains the trunk (20 s). A tenth of a second later it goes on with stage two of the
    # first trial (20 s), and another one starts (5 s), trains the rest of stage one (20 s) and, after another tenth,
    # stage two of the second trial (20 s). That one ends a tenth later.
    assert simulated.shared.makespan_seconds == pytest.approx(5 + 20 + 0.1 + 5 + 20 + 0.1 + 20 + 0.1)
    # The first group is given back 20 s after its last segment, the second one at the end.
    first, second = 5 + 20 + 0.1 + 20 + 20, simulated.shared.makespan_seconds - (5 + 20 + 0.1)
    assert simulated.shared.gpu_seconds == pytest.approx(first + second)


def test_two_trials_that_share_a_trunk_on_one_gpu() -> None:
    simulated = two_trials(1)
    assert simulated.bound_makespan_seconds == simulated.bound_gpu_seconds == 80
    # The trunk, stage two of the first trial, then at once what the second one waits for.
    assert simulated.shared.makespan_seconds == pytest.approx(5 + 20 + 0.1 + 20 + 20 + 0.1 + 20 + 0.1)
    assert simulated.shared.gpu_seconds == pytest.approx(simulated.shared.makespan_seconds)
    # Without sharing 20 steps of stage one more; the GPU waits for a question once, at the end.
    assert simulated.unshared.makespan_seconds == pytest.approx(5 + 20 + 20 + 20 + 20 + 0.1 + 20 + 0.1)


@pytest.mark.parametrize(("threshold", "is_kept"), [(80, True), (100, False)])
def test_a_group_that_a_branch_needs_soon_is_not_given_back(threshold: int, is_kept: bool) -> None:
    search, recipe = new_search({AT_STEP: {"grid": [20, threshold]}, LR: {"grid": [1e-5, 2e-5]}}), new_recipe()
    shared = simulate(search, recipe, plan_trials(search, recipe), 2, COSTS).shared
    # The first group has trained the first two branches after 65.1 s and would be given back 20 s later. The trunk,
    # which another one took up after 30.1 s, is then in its segment from 60 to 80. A group is worth keeping for 25 s.
    trunk = 30.1 + threshold - 20 + 0.1 * (threshold - 20) / 20
    first = trunk + 20.1 if is_kept else 85.1
    another = 0 if is_kept else 5 + 20.1
    assert shared.makespan_seconds == pytest.approx(trunk + 20.1 + (0 if is_kept else 5))
    assert shared.gpu_seconds == pytest.approx(first + shared.makespan_seconds - 25.1 + another)


def test_a_wide_trunk_makes_room_for_narrow_branches() -> None:
    search, recipe = new_search({LR: {"grid": [1e-5, 2e-5]}}), new_recipe((2, 1))
    costs = replace(COSTS, idle_seconds=3600)
    simulated = simulate(search, recipe, plan_trials(search, recipe), 2, costs)
    # The group of two starts, trains the trunk and, with only work for others waiting, goes back 2.1 s later.
    trunk, branch = 5 + 20 + 2.1, 5 + 20 + 0.1
    assert simulated.shared.makespan_seconds == pytest.approx(trunk + branch)
    assert simulated.shared.gpu_seconds == pytest.approx(2 * trunk + 2 * branch)


@settings(deadline=None, max_examples=50)
@given(
    thresholds=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    num_rates=st.integers(1, 3),
    num_workers=st.sampled_from([(1, 1), (1, 2), (2, 1)]),
    num_gpus=st.integers(2, 5),
    num_at_once=st.integers(1, 6),
    keep_from=st.sampled_from([0, 20]),
)
def test_a_simulated_search_trains_what_is_enumerated_once(
    thresholds: list[int],
    num_rates: int,
    num_workers: tuple[int, int],
    num_gpus: int,
    num_at_once: int,
    keep_from: int,
) -> None:
    space = {
        AT_STEP: {"grid": [20 * t for t in thresholds]},
        LR: {"grid": [1e-5 * (n + 1) for n in range(num_rates)]},
    }
    search = new_search(space, max_concurrent_trials=num_at_once)
    recipe = new_recipe(num_workers)
    recipe = replace(recipe, transition=replace(recipe.transition, min_step=keep_from))
    trials = plan_trials(search, recipe)
    simulated = simulate(search, recipe, trials, num_gpus, COSTS)
    enumerated = Plan(search, trials).segments
    assert Counter(segment.key for segment in simulated.shared.trained) == Counter(enumerated.keys())
    assert simulated.bound_gpu_seconds == sum(COSTS.gpu_seconds(segment) for segment in enumerated.values())
    assert simulated.shared.gpu_seconds >= simulated.bound_gpu_seconds
    assert simulated.shared.makespan_seconds >= simulated.bound_makespan_seconds
    asked = sum(segment.num_steps for trial in trials for segment in trial.walk())
    assert sum(segment.num_steps for segment in simulated.unshared.trained) == asked


def test_grids_come_in_the_order_of_ray_tune() -> None:
    space = {"second_stage.optimizer.lr": {"grid": [1.0, 2.0]}, "first_stage.optimizer.lr": {"grid": [3.0, 4.0, 5.0]}}
    trials = plan_trials(new_search(space, num_samples=2), new_recipe())
    stages = [trial.recipe.stages for trial in trials]
    ours = [(s["second_stage"]["optimizer"]["lr"], s["first_stage"]["optimizer"]["lr"]) for s in stages]
    theirs = [
        spec
        for _, spec in generate_variants(
            {name: tune_domain(read_domain(entry, name)) for name, entry in space.items()}
        )
    ]
    assert ours == 2 * [tuple(spec[name] for name in space) for spec in theirs]


def test_what_is_no_grid_is_drawn_with_the_sampling_seed() -> None:
    space = {
        LR: {"loguniform": [1e-5, 1e-3]},
        "second_stage.loss.sync": {"uniform": [0.1, 0.2]},
        "seed": {"randint": [3, 5]},
        "second_stage.dtype": {"choice": ["float32", "bfloat16"]},
    }
    search, recipe = new_search(space, num_samples=20), new_recipe()
    recipes = [trial.recipe for trial in plan_trials(search, recipe)]
    assert recipes == [trial.recipe for trial in plan_trials(search, recipe)]
    assert recipes != [trial.recipe for trial in plan_trials(replace(search, sampling_seed=1), recipe)]
    stages = [made.stages["second_stage"] for made in recipes]
    assert all(1e-5 <= stage["optimizer"]["lr"] <= 1e-3 for stage in stages)
    assert all(0.1 <= stage["loss"]["sync"] <= 0.2 for stage in stages)
    assert {made.decisions.seed for made in recipes} == {3, 4}
    assert {stage["dtype"] for stage in stages} == {"float32", "bfloat16"}


def test_a_draw_that_breaks_a_rule_is_left_out() -> None:
    space = {"second_stage.num_steps": {"choice": [10, 20]}, "second_stage.report_every_steps": {"choice": [10, 20]}}
    trials = plan_trials(new_search(space, num_samples=20), new_recipe())
    stages = [trial.recipe.stages["second_stage"] for trial in trials]
    assert {(stage["num_steps"], stage["report_every_steps"]) for stage in stages} == {(10, 10), (20, 10), (20, 20)}
    assert len({trial.number for trial in trials}) == len(trials) < 20
    with pytest.raises(UserError, match=r"param_space: second_stage\.num_steps: must be a positive multiple"):
        plan_trials(new_search({"second_stage.num_steps": {"choice": [7]}}, num_samples=3), new_recipe())


def at_second_stage_step(step: int, trial: int) -> Segment:
    return Segment(f"parent-{trial}", SECOND_STAGE, {}, step - 10, 0, step)


def test_of_so_many_trials_at_a_rung_one_goes_on() -> None:
    rungs = RandomRungs(TrialSchedulerConfig(grace_period=10, reduction_factor=3), longest=90, length=None, seed=0)
    trials = range(900)
    for step in (10, 30):
        left = [trial for trial in trials if rungs(trial, at_second_stage_step(step, trial))]
        assert len(left) == pytest.approx(len(trials) / 3, rel=0.15)
        # Between rungs, nobody is stopped.
        assert all(rungs(trial, at_second_stage_step(step + 10, trial)) for trial in left)
        trials = left


def test_nobody_is_stopped_by_second_stage_rungs_in_stage_one_nor_for_being_like_another() -> None:
    rungs = RandomRungs(TrialSchedulerConfig(grace_period=10, reduction_factor=3), longest=90, length=None, seed=0)
    assert all(rungs(trial, Segment("root", FIRST_STAGE, {}, 0, 0, 100 + trial)) for trial in range(50))
    assert all(rungs(trial, at_second_stage_step(10, 0)) for trial in range(50))


def test_trials_that_asha_stops_cost_nothing_more_with_sharing_and_without() -> None:
    scheduler = TrialSchedulerConfig(grace_period=10, reduction_factor=2)
    search = new_search({LR: {"grid": [1e-5 * (n + 1) for n in range(8)]}}, scheduler)
    recipe = new_recipe()
    recipe = replace(recipe, second_stage=replace(recipe.second_stage, num_steps=40))
    simulated = simulate(search, recipe, plan_trials(search, recipe), 4, COSTS)
    ends = {number: walked[-1].end_step for number, walked in simulated.shared.walked.items()}
    assert set(ends.values()) == {30, 40, 60}
    assert ends == {number: walked[-1].end_step for number, walked in simulated.unshared.walked.items()}
    steps = sum(segment.num_steps for segment in simulated.shared.trained)
    assert steps == 20 + sum(end - 20 for end in ends.values())


def test_the_demo_is_counted() -> None:
    plan = load_search("search_spaces/transition.yaml").plan()
    assert (len(plan.segments), plan.distinct_steps(), plan.steps_without_sharing()) == (34, 1360, 2400)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "search_spaces/plateau.yaml --simulate --gpus 1",
            "transition.plateau: depends on metrics.*give the step.*--transition-step N",
        ),
        ("search_spaces/plateau.yaml --transition-step 30", "--transition-step: transition.at_step: must be"),
        ("search_spaces/transition.yaml --simulate", "--simulate: needs the number of GPUs"),
        (
            "search_spaces/latentsync.yaml --simulate --gpus 7",
            r"first_stage.num_workers: must not be above the number of GPUs \(7\), got 8",
        ),
        (
            "search_spaces/pbt.yaml --simulate --gpus 2",
            "trial_scheduler.name: --simulate knows fifo and asha.*got pbt",
        ),
        (
            "search_spaces/learning_rate.yaml --simulate --gpus 2 trial_scheduler.promote=true",
            "trial_scheduler.name: .*got asha with promote; add",
        ),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_line(arguments: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(arguments.split())


def test_a_given_transition_step_stands_for_a_policy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search_spaces/plateau.yaml", "--transition-step", "120", "--simulate", "--gpus", "1"]) == 0
    assert "with sharing" in capsys.readouterr().out
