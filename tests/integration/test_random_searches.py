"""Random small searches give the same numbers with sharing and without."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latentsync_ray.config.searchfiles import load_search
from latentsync_ray.core.training import code_fingerprint, load_training
from latentsync_ray.search.job import search_folder

pytestmark = [pytest.mark.slow, pytest.mark.soak]

RATES = st.lists(st.sampled_from([0.001, 0.01, 0.03, 0.1, 0.2]), min_size=1, max_size=2, unique=True)
THRESHOLDS = st.lists(st.sampled_from([8, 12, 16]), min_size=1, max_size=2, unique=True)
POLICIES = st.fixed_dictionaries(
    {"combine": st.sampled_from(["any", "all"]), "min_step": st.sampled_from([4, 8])},
    optional={
        "plateau": st.fixed_dictionaries({"patience_steps": st.just(4), "min_delta": st.sampled_from([0.0, 0.05])}),
        "below": st.fixed_dictionaries({"value": st.sampled_from([0.3, 0.9])}),
    },
)
SCHEDULERS = st.sampled_from(
    [
        {"name": "fifo"},
        {"name": "asha", "grace_period": 4, "reduction_factor": 2},
        {"name": "asha", "grace_period": 4, "reduction_factor": 2, "promote": True},
        {"name": "asha", "grace_period": 8, "reduction_factor": 2, "time_attr": "global_step"},
        {"name": "hyperband", "reduction_factor": 2},
    ]
)
SPACES = st.fixed_dictionaries(
    {
        "transition.at_step": st.builds(lambda steps: {"grid": steps}, THRESHOLDS),
        "second_stage.optimizer.lr": st.builds(lambda rates: {"grid": rates}, RATES),
    },
    optional={"first_stage.optimizer.lr": st.just({"grid": [0.01, 0.02]}), "seed": st.just({"choice": [3, 4]})},
)


@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    space=SPACES,
    policy=POLICIES,
    scheduler=SCHEDULERS,
    num_groups=st.integers(1, 2),
    num_steps=st.sampled_from([8, 16]),
)
def test_random_searches_do_not_depend_on_sharing(
    cluster: None,
    make_search: Any,
    run_search: Any,
    tmp_path: Any,
    space: dict[str, Any],
    policy: dict[str, Any],
    scheduler: dict[str, Any],
    num_groups: int,
    num_steps: int,
) -> None:
    for store in ("shared", "alone"):
        shutil.rmtree(tmp_path / store, ignore_errors=True)
    overrides = {f"transition.{name}": value for name, value in policy.items()}
    file = make_search(
        param_space=space, overrides=overrides, trial_scheduler=scheduler, workers={"max_groups": num_groups}
    )
    arguments = [f"second_stage.num_steps={num_steps}"]
    shared = run_search(file, *arguments, store="shared")
    # An adaptive scheduler decides by the order of arrival: without sharing it is to follow the same journal.
    search, recipe = load_search(file, [*arguments, "share=false", f"storage={tmp_path / 'alone'}"])
    folder = tmp_path / "alone" / search_folder(search, recipe, code_fingerprint(load_training(recipe.training)))
    if (shared.folder / "decisions").exists():
        shutil.copytree(shared.folder / "decisions", folder / "decisions")
    alone = run_search(file, *arguments, "share=false", store="alone")
    assert alone.folder == folder
    assert shared.results == alone.results
    assert shared.weights == alone.weights
    assert shared.summary["steps_distinct"] <= alone.summary["steps_distinct"]
