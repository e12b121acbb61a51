"""What a search says at its end, on trials made by hand."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from records import make_trained

from latentsync_ray.config.domains import Grid
from latentsync_ray.config.loading import load_recipe, with_overrides
from latentsync_ray.config.recipe import Recipe
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.core.segment import Segment
from latentsync_ray.engine.budget import Exceeded
from latentsync_ray.engine.messages import EngineStatus, StageTotals
from latentsync_ray.report.origin import write_origin
from latentsync_ray.report.report import report_lines, write_report
from latentsync_ray.report.summary import Summary, summarise
from latentsync_ray.report.trials import Boundary, TrialResult, TrialStatus, best_trial, with_unfinished
from latentsync_ray.report.trials_file import read_finished, read_trials, write_trials
from latentsync_ray.store import Store

FIGURES = {"syncnet_accuracy": 0.94}
STATUS = EngineStatus(
    trained={
        "first_stage": StageTotals(20, train_seconds=2.0, validate_seconds=0.5),
        "second_stage": StageTotals(10, train_seconds=3.0, validate_seconds=0.25),
    },
    worker_seconds=9.0,
    notices=("group-1: first_stage to step 20: a worker was lost",),
)


def no_terms(key: str) -> None:
    """As of a store without terms."""


def search(mode: str = "min") -> SearchConfig:
    space = {"transition.at_step": Grid((20, 40)), "second_stage.optimizer.implementation": Grid(("fused",))}
    return SearchConfig(recipe="r", name="s", mode=mode, param_space=space)  # type: ignore[arg-type]


SEGMENTS: dict[str, Segment] = {}
"""By key, those of all trials that were made."""


def trial(
    number: int, transition_step: int, values: list[float], status: str = "finished", lr: str = "a"
) -> TrialResult:
    """A trial with boundaries every 20 steps in stage one and every 10 in stage two."""
    results: list[Boundary] = []
    end = 0
    for value in values:
        first, start = end < transition_step, end
        end += 20 if first else 10
        stage, stage_start = ("first_stage", 0) if first else ("second_stage", transition_step)
        parent = results[-1].key if results else "root"
        segment = Segment(parent, stage, {"lr": "" if first else lr}, start, stage_start, end)
        SEGMENTS[segment.key] = segment
        results.append(Boundary.after(segment, {"val/objective": value, "train/loss": value / 2}))
    trunk = [point.key for point in results if point.stage == "first_stage"]
    return TrialResult(
        number,
        {"transition.at_step": transition_step},
        tuple(results),
        TrialStatus(status),
        asked={point.key: 20 if point.key in trunk else 10 for point in results},
        shared=tuple(trunk) if number > 0 else (),
    )


def publish_last(store: Store, trial: TrialResult) -> None:
    """Has a store keep what a trial has reached."""
    if trial.key is not None:
        store.publish(make_trained(SEGMENTS[trial.key]), {"model.weight": torch.zeros(1)})


def failed(number: int, error: str = "boom", **config: Any) -> TrialResult:
    return TrialResult(number, config, status=TrialStatus.FAILED, error=error)


@pytest.mark.parametrize(("mode", "best"), [("min", 1), ("max", 2)])
def test_the_best_is_the_best_at_its_end(mode: str, best: int) -> None:
    trials = [trial(0, 20, [1, 5]), trial(1, 20, [9, 2]), trial(2, 20, [3, 8]), trial(3, 20, [0, 5])]
    assert best_trial(search(mode), trials) is trials[best]


def test_without_a_finished_trial_there_is_no_best() -> None:
    stopped, finished = trial(0, 20, [1], "stopped"), trial(1, 20, [9, 2])
    failed_at_once = failed(2)
    assert best_trial(search(), [stopped, finished, failed_at_once]) is finished
    diverged = trial(3, 20, [1, 1], "diverged")
    assert best_trial(search(), [stopped, failed_at_once, diverged]) is None
    assert best_trial(search(), []) is None


def test_the_first_of_equals_is_the_best() -> None:
    trials = [trial(2, 20, [1, 1]), trial(0, 20, [1, 1]), trial(1, 20, [1, 1])]
    for mode in ("min", "max"):
        assert best_trial(search(mode), trials) is trials[1]


def test_a_trial_knows_where_it_left_stage_one_and_what_it_shared() -> None:
    made = trial(1, 40, [1, 1, 1, 1])
    assert (made.transition_step, made.num_steps_shared) == (40, 40)
    assert trial(0, 40, [1, 1]).transition_step is None
    assert TrialResult(0, {}).transition_step is None
    assert TrialResult(0, {}).num_steps_shared == 0


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    steps = {"transition.min_step": 0, "transition.max_step": 80, "transition.plateau": None}
    stages = {"first_stage.report_every_steps": 20, "second_stage.report_every_steps": 10}
    return load_recipe(Path(__file__).parents[3] / "configs" / "demo", {**steps, **stages})


def summary_of(recipe: Recipe, *trials: TrialResult) -> Summary:
    return summarise(search(), recipe, trials, STATUS, [], FIGURES, 12.5, no_terms, "/r/searches/s")


def report(recipe: Recipe, folder: Path, *trials: TrialResult) -> Summary:
    summary, store = summary_of(recipe, *trials), Store(str(folder))
    write_origin(store, "searches/s", search(), recipe, "")
    write_report(store, "searches/s", recipe, summary)
    return summary


def test_the_summary_counts_every_step_once(recipe: Recipe) -> None:
    best = trial(1, 40, [4, 3, 1.5])
    best = replace(best, config={**best.config, "second_stage.optimizer.implementation": "fused"})
    summary = summary_of(recipe, best, trial(0, 20, [4, 3, 2]), trial(2, 40, [4, 3, 2.5], "stopped", "b"))
    assert [trial.number for trial in summary.trials] == [0, 1, 2] and summary.best is best and summary.succeeded
    assert summary.num_by_status == {"finished": 2, "stopped": 1, "diverged": 0, "failed": 0, "unfinished": 0}
    # Stage one 20 + 20; stage two 20 after step 20, and 10 twice after step 40, under different settings.
    assert summary.steps_distinct == 40 + 20 + 10 + 10
    assert summary.steps_without_sharing == 40 + 50 + 50
    assert summary.sharing_factor == 140 / 80
    assert summary.steps_trained == 30
    assert (summary.train_seconds, summary.validate_seconds) == (5.0, 0.75)

    lines = report_lines(summary)
    assert summary.answer is not None and tuple(lines[: len(summary.answer.sentences)]) == summary.answer.sentences
    assert lines[-2:] == [
        "to write the best UNet for LatentSync's own scripts:",
        "  python -m latentsync_ray.export /r/searches/s trial1.pt",
    ]
    said = "\n".join(lines)
    assert "best: trial 1, val/objective 1.5, transition at step 40" in said
    assert "transition.at_step 40, second_stage.optimizer.implementation fused\n" in said
    assert "steps: 30 trained now, 80 distinct, 140 without sharing (factor 1.75)" in said


def test_summary_json_has_what_the_readme_names(recipe: Recipe, tmp_path: Path) -> None:
    report(recipe, tmp_path, trial(0, 20, [4, 3, 2]), trial(1, 40, [4, 3, 1.5]))
    written = json.loads((tmp_path / "searches/s/summary.json").read_text())
    best = {"trial": 1, "status": "finished", "transition.at_step": 40, "transition_step": 40}
    assert best.items() <= written.pop("best").items()
    del written["checksum"]
    answer = written.pop("answer")
    assert (answer["best"], answer["tied"], answer["num_pairs"], answer["differences"]) == (1, [1], 0, {})
    assert answer["sentences"][0].startswith(
        "Leave stage one at step 40 (val/objective 1.5); how sure that is is not"
    )
    assert written == {
        "trials": 2,
        "trials_by_status": {"finished": 2, "stopped": 0, "diverged": 0, "failed": 0, "unfinished": 0},
        "steps_trained": 30,
        "steps_distinct": 70,
        "steps_without_sharing": 90,
        "steps_unfinished": 0,
        "stopped_by": None,
        "sharing_factor": 90 / 70,
        "gpu_seconds": 9.0,
        "train_seconds": 5.0,
        "validate_seconds": 0.75,
        "wall_seconds": 12.5,
        "exploits": [],
        "inputs": FIGURES,
        "startup_seconds": None,
        "plan": None,
        "notices": list(STATUS.notices),
    }


def test_the_table_has_a_row_for_every_trial(recipe: Recipe, tmp_path: Path) -> None:
    last = failed(3, **{"transition.at_step": 40})
    assert not report(recipe, tmp_path, last, trial(1, 40, [4, 3, 1.5]), trial(0, 20, [4, 3, 2])).succeeded
    with (tmp_path / "searches/s/trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == ["0", "1", "3"]
    assert rows[0] == {
        "trial": "0",
        "role": "searched",
        "status": "finished",
        "transition.at_step": "20",
        "second_stage.optimizer.implementation": "",
        "transition_step": "20",
        "global_step": "40",
        "second_stage_step": "20",
        "train/loss": "1.0",
        "val/objective": "2",
        "key": trial(0, 20, [4, 3, 2]).key,
    }
    assert rows[2]["status"] == "failed"
    assert rows[2]["val/objective"] == rows[2]["transition_step"] == ""


def test_the_best_recipe_can_be_trained_again(recipe: Recipe, tmp_path: Path) -> None:
    best = trial(0, 40, [4, 3, 1.5])
    best = replace(best, config={**best.config, "second_stage.optimizer.lr": 3e-5})
    report(recipe, tmp_path, best)
    assert load_recipe(tmp_path / "searches/s/best") == with_overrides(recipe, best.config)


def test_a_search_without_any_result_still_says_so(recipe: Recipe, tmp_path: Path) -> None:
    summary = report(recipe, tmp_path, failed(0, "first_stage from step 0 to 20: boom"))
    assert not summary.succeeded
    assert summary.best is None
    assert (summary.steps_distinct, summary.sharing_factor) == (0, 1.0)
    assert not (tmp_path / "searches/s/best").exists()
    assert report_lines(summary)[:2] == [
        "trial 0 failed: first_stage from step 0 to 20: boom",
        "best: none, since no trial has run to its end",
    ]


def test_a_search_succeeds_if_a_trial_runs_to_its_end(recipe: Recipe, tmp_path: Path) -> None:
    diverged = replace(trial(1, 20, [4, 3, 99], "diverged"), error="at step 40 it is 99")
    summary = report(recipe, tmp_path, trial(0, 20, [4, 3, 2]), diverged)
    assert summary.succeeded
    assert "trial 1 diverged: at step 40 it is 99" in report_lines(summary)
    assert (tmp_path / "searches/s/best").is_dir()
    # Without one there is no best, nor what an earlier call has called so.
    summary = report(recipe, tmp_path, diverged, trial(0, 20, [4, 3], "stopped"))
    assert not summary.succeeded and summary.best is None and not (tmp_path / "searches/s/best").exists()


def test_a_finished_search_is_read_back_as_long_as_its_segments_are_there(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(str(tmp_path))
    assert read_finished(store, "searches/s") is None
    trials = [trial(0, 20, [4, 3, 2]), trial(1, 40, [4, 3, 1.5], "stopped")]
    report(recipe, tmp_path, *trials)
    assert read_trials(store, "searches/s") == (trials, trials[0])
    assert read_finished(store, "searches/s") is None
    for made in trials:
        publish_last(store, made)
    assert read_finished(store, "searches/s") == trials

    file = tmp_path / "searches/s/trials.json"
    whole = file.read_text()
    capsys.readouterr()
    for damaged in ("", whole[:-9], "[]", "{}", "[1]", whole.replace("1.5", "1.6")):
        file.write_text(damaged)
        assert read_finished(store, "searches/s") is None
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith(f"{file}: ") and line.endswith("; the search runs again and finds what it can use")
    file.write_text(whole)
    write_trials(store, "searches/s", [], None, 0)  # it has begun again
    assert read_finished(store, "searches/s") is None
    file.write_text(whole)
    (tmp_path / "segments" / str(trials[1].key) / "record.json").write_text("{")
    assert read_finished(store, "searches/s") is None


def test_a_search_that_a_budget_has_stopped_says_what_is_left(recipe: Recipe, tmp_path: Path) -> None:
    asked = replace(search(), num_samples=2)
    trials = with_unfinished(asked, [trial(1, 40, [4, 3, 2], "running"), trial(0, 20, [4, 3, 2, 2])])
    assert [(made.number, made.status) for made in trials] == [
        (0, "finished"),
        *((number, "unfinished") for number in (1, 2, 3)),
    ]
    stopped = replace(STATUS, stopped_by=Exceeded("gpu_hours", 2, 1))
    summary = summarise(asked, recipe, trials, stopped, [], {}, 12.5, no_terms, "/r/searches/s")
    assert summary.num_by_status[TrialStatus.UNFINISHED] == 3 and len(summary.trials) == 4
    assert summary.stopped_by == stopped.stopped_by
    assert recipe.length is not None and recipe.length.steps is not None
    left = 3 * recipe.length.steps - 40 - 10  # one has 50 behind it
    assert summary.steps_unfinished == left
    assert (
        f"stopped by budget.gpu_hours: 2 of 1 are used; unfinished: 3 of 4 trials, at most {left} steps; "
        "raise it and run the same command again to go on"
    ) in report_lines(summary)
    store = Store(str(tmp_path))
    write_origin(store, "searches/s", asked, recipe, "")
    write_report(store, "searches/s", recipe, summary)
    for made in trials:
        publish_last(store, made)
    assert read_finished(store, "searches/s") is None


def test_a_search_with_a_failed_trial_is_not_finished(recipe: Recipe, tmp_path: Path) -> None:
    store, trials = Store(str(tmp_path)), [trial(0, 20, [4, 3, 2]), trial(1, 40, [4], "failed")]
    for made in trials:
        publish_last(store, made)
    report(recipe, tmp_path, *trials)
    assert read_finished(store, "searches/s") is None
