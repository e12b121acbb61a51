"""Branches made by hand from stored segments, and finished searches that are lengthened."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers import Outcome, results_folder

from latentsync_ray import train
from latentsync_ray.config.errors import UserError
from latentsync_ray.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.soak]


def test_a_branch_by_hand_is_what_a_trial_would_have_done(
    cluster: None, make_search: Any, run_search: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str, store: str = "results") -> Outcome:
        status = train.main([str(tmp_path / "recipe"), *arguments, f"storage={tmp_path / store}"])
        folder = results_folder(capsys.readouterr().out)
        return Outcome(folder, tmp_path / store, status)

    make_search()
    before = run("transition.at_step=16")
    executed = before.executed
    keys = {r["segment"]["end_step"]: key for key, r in before.records.items()}

    # Stage two from step 8, where this trial had gone on with stage one.
    lr = "second_stage.optimizer.lr=0.02"
    branch = run("--from", keys[8][:12], lr, "--stage", "second_stage", "transition.at_step=16")
    wanted = run("transition.at_step=8", lr, store="undisturbed")
    assert branch.trials == wanted.trials
    stage_two = [key for key, r in branch.records.items() if r["segment"]["stage_start_step"] == 8]
    assert len(stage_two) == 2
    assert Counter(branch.executed) - Counter(executed) == Counter(stage_two)

    # Without --stage the policy decides; a state that is gone is trained again.
    Store(str(tmp_path / "results")).drop_state(keys[12])
    on = run("--from", keys[12], "first_stage.optimizer.lr=0.03", "transition.at_step=16")
    assert [t["transition_step"] for t in on.trials] == ["16"]
    assert Counter(on.executed)[keys[12]] == 2
    lrs = [r["segment"]["config"]["optimizer"]["lr"] for r in lineage(on, on.trials[0]["key"])]
    assert lrs == [0.01, 0.01, 0.01, 0.03, 0.01, 0.01]

    with pytest.raises(UserError, match="must be the key of a segment"):
        run("--from", "0" * 20)


def lineage(outcome: Outcome, key: str) -> list[dict[str, Any]]:
    """A segment's records, oldest first."""
    found: list[dict[str, Any]] = []
    while key in outcome.records:
        found.insert(0, outcome.records[key])
        key = found[0]["segment"]["parent"]
    return found


def test_finished_trials_are_lengthened_and_stopped_ones_stay_so(
    cluster: None, make_search: Any, run_search: Any
) -> None:
    space = make_search(
        param_space={
            "transition.at_step": {"grid": [4, 8]},
            "second_stage.optimizer.lr": {"grid": [0.001, 0.01, 0.04]},
        },
        trial_scheduler={"name": "asha", "grace_period": 4, "reduction_factor": 2},
    )
    before = run_search(space)
    trials_before, executed_before = before.trials, before.executed
    longer = run_search(space, "trials.extend=8")
    assert longer.folder == before.folder and longer.exit_status == 0
    assert longer.executed == sorted(set(longer.executed))
    ends = {t["trial"]: (t["status"], int(t["second_stage_step"])) for t in longer.trials}
    extended = 0
    for trial in trials_before:
        status, end = ends[trial["trial"]]
        if trial["status"] == "stopped":
            assert (status, end) == ("stopped", int(trial["second_stage_step"]))
        else:
            assert end > 8 or status == "stopped"  # the scheduler may stop it at the old end, which is no end now
            extended += end == 16 and status == "finished"
    assert extended > 0
    assert len(longer.executed) - len(executed_before) == sum(
        (end - int(t["second_stage_step"])) // 4 for t, (_, end) in zip(trials_before, ends.values(), strict=True)
    )

    trials, executed = longer.trials, longer.executed
    again = run_search(space, "trials.extend=8")
    assert again.trials == trials and again.executed == executed
