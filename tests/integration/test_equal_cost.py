"""Trials of equal cost, with baselines beside them, and the best ones again under other draws."""

from __future__ import annotations

from typing import Any

import pytest

from latentsync_ray.core.baselines import BASELINES

pytestmark = pytest.mark.slow
AT, LR = "transition.at_step", "second_stage.optimizer.lr"
SEARCH = {
    "overrides": {"length": {"steps": 24}, "second_stage.num_steps": None},
    "param_space": {AT: {"grid": [8, 16]}, LR: {"grid": [0.01, 0.02]}},
    "baselines": True,
}


def test_baselines_and_confirmations_run_beside_the_search(cluster: None, make_search: Any, run_search: Any) -> None:
    space = make_search(**SEARCH)
    outcome = run_search(space)
    trials = outcome.trials
    own, beside = [[t for t in trials if (t["role"] == "searched") == is_own] for is_own in (True, False)]
    assert outcome.exit_status == 0 and [trial["status"] for trial in trials] == ["finished"] * 7
    assert {trial["global_step"] for trial in trials} == {"24"}  # all cost the same
    assert [(int(t["transition_step"]), int(t["second_stage_step"])) for t in own] == [
        (8, 16),
        (8, 16),
        (16, 8),
        (16, 8),
    ]
    assert [trial["role"] for trial in beside] == list(BASELINES)
    never, first, shipped = beside
    assert never["transition_step"] == "" and first["transition_step"] == shipped["transition_step"] == "8"
    # The recipe's own rate is one of the space, and its threshold the first: two baselines cost nothing.
    assert first["key"] == shipped["key"] == next(t["key"] for t in own if t[AT] == "8" and t[LR] == "0.01")
    executed = outcome.executed
    assert len(executed) == len(set(executed)) == 24 // 4 + 2 * (16 + 8) // 4  # a trunk, and two branches at each
    assert outcome.summary["answer"]["num_pairs"] == 6
    assert set(outcome.summary["answer"]["differences"]) == {str(role) for role in BASELINES}

    # What is asked for besides is trained, and nothing else.
    again = run_search(space, "confirm={top: 1, seeds: 2}")
    assert again.folder == outcome.folder and again.trials[:7] == trials
    added = again.trials[7:]
    assert [trial["role"] for trial in added] == ["confirming"] * 2 + [
        str(role) for role in BASELINES[1:] for _ in range(2)
    ]
    best = min(own, key=lambda trial: float(trial["val/objective"]))
    new = sorted(set(again.executed).difference(executed))
    assert {trial["key"] for trial in added} <= set(new) and best["key"] not in new
    seeds = {again.records[key]["segment"]["seed"] for key in new}
    assert seeds == {1, 2} and {again.records[key]["segment"]["stage"] for key in new} == {"second_stage"}
    assert run_search(space, "confirm={top: 1, seeds: 2}").executed == again.executed
