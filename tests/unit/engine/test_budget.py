"""What is used up, and what is remembered of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from latentsync_ray.config.errors import UserError
from latentsync_ray.config.search import BudgetConfig
from latentsync_ray.engine.budget import Exceeded, Spent, exceeded
from latentsync_ray.engine.notes import read_spent
from latentsync_ray.store import Store

SPENT = Spent(worker_seconds=7200, wall_seconds=1800)


@pytest.mark.parametrize(
    ("budget", "used_up"),
    [
        (BudgetConfig(), None),
        (BudgetConfig(gpu_hours=2.01, wall_hours=0.6, storage_gb=3.1), None),
        (BudgetConfig(gpu_hours=2), Exceeded("gpu_hours", 2, 2)),
        (BudgetConfig(gpu_hours=3, wall_hours=0.4), Exceeded("wall_hours", 0.5, 0.4)),
        (BudgetConfig(storage_gb=2.5), Exceeded("storage_gb", 3, 2.5)),
    ],
)
def test_the_first_that_is_used_up_is_named(budget: BudgetConfig, used_up: Exceeded | None) -> None:
    assert exceeded(budget, SPENT, 3 * 10**9) == used_up


def test_a_budget_that_is_used_up_is_a_line_for_the_user() -> None:
    assert str(Exceeded("wall_hours", 1 / 3, 0.4)) == "budget.wall_hours: 0.3333 of 0.4 are used"
    assert Exceeded("storage_gb", 3, 2).is_storage and not Exceeded("gpu_hours", 3, 2).is_storage


def test_what_was_spent_is_remembered(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert read_spent(store, "searches/s") == Spent()
    store.write_json("searches/s/spent.json", dataclasses.asdict(SPENT))
    assert read_spent(store, "searches/s") == SPENT
    for damaged in ("{", "[]", '{"hours": 1}', '{"wall_seconds": "x"}'):
        (tmp_path / "searches/s/spent.json").write_text(damaged)
        with pytest.raises(UserError, match=r"spent\.json: "):
            read_spent(store, "searches/s")
