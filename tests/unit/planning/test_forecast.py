"""What a search is expected to take: exact where it does not adapt, and no course is outside of what is told."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from records import make_trained

from latentsync_ray.config.domains import read_domain
from latentsync_ray.config.loading import load_recipe
from latentsync_ray.config.recipe import FIRST_STAGE, Recipe
from latentsync_ray.config.search import SearchConfig, TrialSchedulerConfig, WorkersConfig
from latentsync_ray.core.course import Course
from latentsync_ray.core.forecast import Forecast, Span, StageTimes
from latentsync_ray.core.record import Timings
from latentsync_ray.core.segment import Segment
from latentsync_ray.core.trial_recipe import TrialRecipe
from latentsync_ray.plan import main
from latentsync_ray.planning.forecast import Known, forecast
from latentsync_ray.planning.plan import plan_trials
from latentsync_ray.planning.scenarios import scenarios
from latentsync_ray.planning.simulation import RandomRungs
from latentsync_ray.planning.stored import foretell
from latentsync_ray.store import Store

ROOT = Path(__file__).resolve().parents[3]
LR, AT_STEP, PATIENCE = "second_stage.optimizer.lr", "transition.at_step", "transition.plateau.patience_steps"
RATES = {"grid": [1e-4, 2e-4, 4e-4]}
SMALL = {
    "first_stage.report_every_steps": 20,
    "second_stage.report_every_steps": 10,
    "second_stage.num_steps": 40,
    "transition.min_step": 40,
    "transition.max_step": 120,
    "transition.plateau": None,
    "transition.at_step": None,
    "length": None,
}
PLATEAU = SMALL | {"transition.plateau": {"metric": "val/recon", "patience_steps": 20}}
TIMES = {"first_stage": StageTimes(0.9, 2.0, 100), "second_stage": StageTimes(1.8, 2.0, 150)}


def made(
    space: dict[str, Any], values: dict[str, Any] | None = None, **scheduler: Any
) -> tuple[SearchConfig, Recipe]:
    domains = {name: read_domain(entry, name) for name, entry in space.items()}
    settings = TrialSchedulerConfig(**{"name": "fifo", **scheduler})
    workers = WorkersConfig(max_groups=1)
    search = SearchConfig("r", "s", baselines=False, param_space=domains, trial_scheduler=settings, workers=workers)
    return search, load_recipe(ROOT / "configs" / "demo", values or SMALL)


def foretold(search: SearchConfig, recipe: Recipe, known: Known | None = None) -> Forecast:
    trials = plan_trials(search, recipe, any_policy=True)
    return forecast(search, recipe, scenarios(search, recipe, trials), known or Known())


def distinct_steps(walks: Sequence[Sequence[Segment]]) -> int:
    return sum({segment.key: segment.num_steps for walk in walks for segment in walk}.values())


def test_without_decisions_it_is_exact() -> None:
    search, recipe = made({AT_STEP: {"grid": [40, 80]}, LR: RATES})
    plan = foretold(search, recipe, Known(TIMES, startup_seconds=5.0, gpu_price=2.0))
    assert plan.first_stage_steps == Span(80, 80, 80)
    assert plan.second_stage_steps == Span(240, 240, 240)
    assert plan.steps_without_sharing.most == 3 * (40 + 80) + 6 * 40
    # One group: 80 steps of 0.9 + 2 / 20 s and 240 of 1.8 + 2 / 10 s, its start, and what trials need to ask.
    work = 80 * 1.0 + 240 * 2.0
    assert plan.wall_hours is not None and plan.gpu_hours is not None and plan.price is not None
    assert 0 <= plan.wall_hours.most * 3600 - (5 + work) < 0.02 * work
    assert plan.gpu_hours == plan.wall_hours and plan.price.likely == 2 * plan.gpu_hours.likely
    assert plan.bytes_written is not None and plan.bytes_written.most == 4 * 100 + 24 * 150
    assert plan.bytes_kept is not None and plan.bytes_kept.most == 3 * 100 + 6 * 150  # steps 40, 60, 80; the ends


@pytest.mark.parametrize("time_attr", ["second_stage_step", "global_step", "cost"])
def test_no_course_of_asha_is_outside(time_attr: str) -> None:
    grace = 10 if time_attr == "second_stage_step" else 90
    scheduler = {"name": "asha", "time_attr": time_attr, "grace_period": grace, "reduction_factor": 2}
    values = SMALL | {
        "second_stage.num_steps": None,
        "length": {"steps": None, "cost": 220.0, "first_stage": 1.0, "second_stage": 2.0},
    }
    search, recipe = made({AT_STEP: {"grid": [40, 80, 120]}, LR: RATES}, values, **scheduler)
    plan, trials = foretold(search, recipe), plan_trials(search, recipe)
    found = set()
    for seed in range(50):
        random.Random(seed).shuffle(trials)
        rungs = RandomRungs(search.trial_scheduler, 220, recipe.length, seed)
        found.add(distinct_steps([list(until_stopped(trial.walk(), rungs, trial.number)) for trial in trials]))
    assert plan.steps.least <= min(found) < max(found) <= plan.steps.most
    assert plan.steps.least < plan.steps.likely < plan.steps.most


def until_stopped(walk: Iterator[Segment], rungs: RandomRungs, number: int) -> Iterator[Segment]:
    for segment in walk:
        yield segment
        if not rungs(number, segment):
            return


@pytest.mark.parametrize("fixed", [True, False])
def test_no_course_of_a_policy_is_outside(fixed: bool) -> None:
    values = (
        PLATEAU
        if fixed
        else PLATEAU
        | {
            "second_stage.num_steps": None,
            "length": {"steps": 200, "cost": None, "first_stage": 1.0, "second_stage": 1.0},
        }
    )
    search, recipe = made({PATIENCE: {"grid": [20, 40, 60]}, LR: {"grid": [1e-4, 2e-4]}}, values)
    plan = foretold(search, recipe)
    trials = plan_trials(search, recipe, any_policy=True)
    assert plan.first_stage_steps == Span(40, plan.first_stage_steps.likely, 120)
    found = set()
    for seed in range(50):
        curve = random.Random(seed)
        values_at = {step: {"val/recon": curve.random() + 2 * curve.random() / step} for step in range(20, 140, 20)}
        found.add(distinct_steps([list(walk_on(trial.recipe, trial.root, values_at)) for trial in trials]))
    assert plan.steps.least <= min(found) < max(found) <= plan.steps.most


def walk_on(recipe: TrialRecipe, root: str, values_at: dict[int, dict[str, float]]) -> Iterator[Segment]:
    course = Course(recipe, root)
    while (segment := course.next()) is not None:
        yield segment
        course.passed(segment, values_at.get(segment.end_step, {}))


def test_thresholds_that_are_drawn_may_be_any_of_the_range() -> None:
    space = {AT_STEP: {"choice": [40, 80, 120]}, LR: {"loguniform": [1e-5, 1e-3]}}
    search, recipe = made(space, name="pbt", quantile_fraction=0.25)
    plan = foretold(replace(search, num_samples=8), recipe)
    assert (plan.first_stage_steps.least, plan.first_stage_steps.most) == (40, 120)
    # Two of eight trials are the worst at each of four intervals, and set back or forward by one.
    assert plan.second_stage_steps == Span(8 * 40 - 80, 8 * 40, 8 * 40 + 80)


@pytest.mark.parametrize("name", ["fifo", "asha", "hyperband", "pbt", "pb2"])
@pytest.mark.parametrize("values", [SMALL | {AT_STEP: 80}, PLATEAU])
def test_all_schedulers_and_policies_are_told(name: str, values: dict[str, Any]) -> None:
    search, recipe = made({LR: {"uniform": [1e-5, 1e-3]}}, values, name=name)
    steps = foretold(replace(search, num_samples=4), recipe).steps
    assert 0 < steps.least <= steps.likely <= steps.most
    assert steps.is_exact == (name == "fifo" and values is not PLATEAU)


def test_what_is_stored_is_not_done_again_and_tells_how_long_steps_take(tmp_path: Path) -> None:
    import torch

    search, recipe = made({AT_STEP: {"grid": [40, 80]}, LR: RATES})
    search, store = replace(search, storage=str(tmp_path)), Store(str(tmp_path))

    def root_of(trial: TrialRecipe) -> str:
        return trial.root_key({"data": "d"}, {})

    new = foretell(store, search, recipe, root_of)
    assert new is not None and new.steps_stored == 0 and new.gpu_hours is None
    for segment in list(plan_trials(search, recipe, root_of=root_of)[0].walk())[:3]:
        timings = Timings(0.0, 1.0 * segment.num_steps, 2.0)
        store.publish(replace(make_trained(segment), timings=timings), {"model.w": torch.zeros(3)})
    store.write_json("searches/a/summary.json", {"startup_seconds": 7.0})
    left = foretell(store, search, recipe, root_of)
    assert left is not None and left.steps == new.steps and left.steps_stored == 20 + 20 + 10
    assert (left.first_stage_seconds, left.second_stage_seconds) == (1.0 + 2 / 20, 1.0 + 2 / 10)
    work = 40 * 1.1 + 230 * 1.2
    assert left.wall_hours is not None and 0 <= left.wall_hours.most * 3600 - (7 + work) < 0.02 * work
    other = foretell(store, search, recipe, lambda trial: "another root")
    assert other is not None and other.steps_stored == 0 and other.first_stage_seconds == left.first_stage_seconds


def test_the_command_tells_the_range(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    storage = f"storage={tmp_path}"
    arguments = ["search_spaces/plateau.yaml", storage, "--first-stage-seconds", "1", "--second-stage-seconds", "2"]
    assert main([*arguments, "--gpu-price", "3"]) == 0
    printed = capsys.readouterr().out
    rows = {line.split("│")[1].strip(): line.split("│")[2:5] for line in printed.splitlines() if line.startswith("│")}
    assert [float(cell) for cell in rows["steps of stage one"]] == [200, 200, 200]  # a baseline never leaves it
    hours, price = ([float(cell) for cell in rows[name]] for name in ("GPU hours", "price"))
    assert price == pytest.approx([3 * hour for hour in hours], rel=0.05)
    assert FIRST_STAGE not in printed and "--probe" not in printed
