"""What a search says at its end, on trials made by hand."""

import csv
import dataclasses
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from ray.tune.experiment import Trial
from records import make_segment, make_trained
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from latentsync_ray.config.domains import Grid
from latentsync_ray.config.loading import load_recipe, with_overrides
from latentsync_ray.config.recipe import Recipe
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.core.hashing import digest
from latentsync_ray.core.segment import Segment
from latentsync_ray.engine.budget import Exceeded
from latentsync_ray.engine.messages import EngineStatus, StageTotals
from latentsync_ray.report.report import read_finished, write_report
from latentsync_ray.report.trials import TrialLog, best_trial, leave_unfinished, write_trials
from latentsync_ray.search.progress import Progress
from latentsync_ray.search.tensorboard import TensorBoardLog
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


def search(mode: str = "min") -> SearchConfig:
    space = {"transition.at_step": Grid((20, 40)), "second_stage.optimizer.implementation": Grid(("fused",))}
    return SearchConfig(recipe="r", name="s", mode=mode, param_space=space)  # type: ignore[arg-type]


def trial(
    number: int, transition_step: int, values: list[float], status: str = "finished", lr: str = "a"
) -> TrialLog:
    """A trial with boundaries every 20 steps in stage one and every 10 in stage two."""
    log = TrialLog(number, {"transition.at_step": transition_step}, status=status)
    step = 0
    for value in values:
        first = step < transition_step
        step += 20 if first else 10
        log.results.append(
            {
                "val/objective": value,
                "train/loss": value / 2,
                "global_step": step,
                "stage": "first_stage" if first else "second_stage",
                "second_stage_step": 0 if first else step - transition_step,
                "cached": number > 0 and first,
                "key": segment_of(f"first-{step}" if first else f"{transition_step}-{lr}-{step}").key,
                "done": False,
            }
        )
        log.asked[log.last["key"]] = 20 if first else 10
        if log.last["cached"]:
            log.shared.append(log.last["key"])
    return log


SEGMENTS: dict[str, Segment] = {}
"""By key, those that `segment_of` has made."""


def segment_of(name: str) -> Segment:
    segment = make_segment(int(digest(name)[:8], 16))
    return SEGMENTS.setdefault(segment.key, segment)


def publish_last(store: Store, log: TrialLog) -> None:
    if log.results:
        store.publish(make_trained(SEGMENTS[log.last["key"]]), {"model.weight": torch.zeros(1)})


def numbered(*trials: TrialLog) -> dict[int, TrialLog]:
    return {log.number: log for log in trials}


@pytest.mark.parametrize(("mode", "best"), [("min", 1), ("max", 2)])
def test_the_best_is_the_best_at_its_end(mode: str, best: int) -> None:
    trials = numbered(trial(0, 20, [1, 5]), trial(1, 20, [9, 2]), trial(2, 20, [3, 8]), trial(3, 20, [0, 5]))
    assert best_trial(search(mode), trials) is trials[best]


def test_without_a_finished_trial_there_is_no_best() -> None:
    stopped, finished = trial(0, 20, [1], "stopped"), trial(1, 20, [9, 2])
    failed_at_once = TrialLog(2, {}, status="failed")
    assert best_trial(search(), numbered(stopped, finished, failed_at_once)) is finished
    diverged = trial(3, 20, [1, 1], "diverged")
    assert best_trial(search(), numbered(stopped, failed_at_once, diverged)) is None
    assert best_trial(search(), {}) is None


def test_the_first_of_equals_is_the_best() -> None:
    trials = numbered(trial(2, 20, [1, 1]), trial(0, 20, [1, 1]), trial(1, 20, [1, 1]))
    for mode in ("min", "max"):
        assert best_trial(search(mode), trials) is trials[0]


def test_a_trial_knows_where_it_left_stage_one_and_what_it_shared() -> None:
    log = trial(1, 40, [1, 1, 1, 1])
    assert (log.transition_step, log.num_steps_shared) == (40, 40)
    assert trial(0, 40, [1, 1]).transition_step is None
    assert TrialLog(0, {}).transition_step is None
    assert TrialLog(0, {}).num_steps_shared == 0


def test_a_trial_may_fail_before_it_began() -> None:
    """The process that it was to take over is lost; Ray Tune then says nothing of it before."""
    progress = Progress()
    lost = Trial("trial", stub=True, trial_id="a1b2_00007", config={"second_stage.optimizer.lr": 1e-4})
    progress.on_trial_error(0, [lost], lost)
    assert progress.trials == {7: TrialLog(7, lost.config, status="failed", error="unknown error")}


def test_tensorboard_shows_what_trials_report(tmp_path: Path) -> None:
    """Two trials with a stage one in common: losses of every step, metrics and a picture of every boundary."""
    store = Store(str(tmp_path))
    log = TensorBoardLog(store, "searches/s")
    trials = [Trial("trial", stub=True, trial_id=f"a1b2_0000{number}", config={}) for number in range(2)]

    def reach(number: int, key: str, stage: str, start: int, losses: list[float], value: float, colour: Any) -> None:
        picture = io.BytesIO()
        Image.new("RGB", (6, 4), colour).save(picture, "PNG")
        segment = segment_of(key)
        trained = make_trained(segment, steps=[{"loss": loss, "lr": loss / 8} for loss in losses])
        store.publish(trained, {"model.weight": torch.zeros(1)}, picture.getvalue())
        end = start + len(losses)
        place = {
            "stage": stage,
            "start_step": start,
            "global_step": end,
            "key": segment.key,
            "parent": "",
            "cached": False,
        }
        means = {"train/loss": sum(losses) / len(losses), "val/objective": value, "time_total_s": 1.0}
        log.on_trial_result(0, trials, trials[number], {**place, **means})

    branches = [([8.0, 6.0, 4.0], 2.0, (4, 5, 6)), ([16.0, 12.0, 9.0], 3.0, (7, 8, 9))]
    for number, branch in enumerate(branches):
        reach(number, "trunk", "first_stage", 0, [0.5, 0.25], 4.0, (1, 2, 3))
        reach(number, f"branch-{number}", "second_stage", 2, *branch)

    for number, (losses, value, colour) in enumerate(branches):
        folder = tmp_path / f"searches/s/tensorboard/trial-000{number}"
        events = EventAccumulator(str(folder), {"scalars": 0, "images": 0}).Reload()  # 0: all of them
        curves = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.scalars.Keys()}
        assert curves == {
            "first_stage/train/loss": [(1, 0.5), (2, 0.25)],
            "first_stage/train/lr": [(1, 0.0625), (2, 0.03125)],
            "first_stage/val/objective": [(2, 4.0)],
            "second_stage/train/loss": [(3 + step, loss) for step, loss in enumerate(losses)],
            "second_stage/train/lr": [(3 + step, loss / 8) for step, loss in enumerate(losses)],
            "second_stage/val/objective": [(5, value)],
            "val/objective": [(2, 4.0), (5, value)],
        }
        pictures = {tag: events.Images(tag) for tag in events.images.Keys()}
        assert pictures.keys() == {"first_stage/preview", "second_stage/preview"}
        for tag, step, shown in [("first_stage/preview", 2, (1, 2, 3)), ("second_stage/preview", 5, colour)]:
            (event,) = pictures[tag]
            assert event.step == step
            assert Image.open(io.BytesIO(event.encoded_image_string)).getcolors() == [(6 * 4, shown)]


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    steps = {"transition.min_step": 0, "transition.max_step": 80, "transition.plateau": None}
    stages = {"first_stage.report_every_steps": 20, "second_stage.report_every_steps": 10}
    return load_recipe(Path(__file__).parents[3] / "configs" / "demo", {**steps, **stages})


def report(trials: dict[int, TrialLog], recipe: Recipe, folder: Path) -> tuple[bool, dict[str, Any]]:
    succeeded = write_report(Store(str(folder)), "searches/s", search(), recipe, trials, STATUS, [], FIGURES, 12.5)
    return succeeded, json.loads((folder / "searches/s/summary.json").read_text())


def test_the_summary_counts_every_step_once(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = numbered(trial(0, 20, [4, 3, 2]), trial(1, 40, [4, 3, 1.5]), trial(2, 40, [4, 3, 2.5], "stopped", "b"))
    trials[1].parameters["second_stage.optimizer.implementation"] = "fused"
    succeeded, summary = report(trials, recipe, tmp_path)
    assert succeeded
    assert summary["trials_by_status"] == {
        "finished": 2,
        "stopped": 1,
        "diverged": 0,
        "failed": 0,
        "unfinished": 0,
    }
    # Stage one 20 + 20; stage two 20 after step 20, and 10 twice after step 40, under different settings.
    assert summary["steps_distinct"] == 40 + 20 + 10 + 10
    assert summary["steps_without_sharing"] == 40 + 50 + 50
    assert summary["sharing_factor"] == 140 / 80
    assert summary["steps_trained"] == 30
    assert (summary["train_seconds"], summary["validate_seconds"]) == (5.0, 0.75)
    assert (summary["gpu_seconds"], summary["wall_seconds"]) == (9.0, 12.5)
    assert summary["inputs"] == FIGURES
    assert summary["notices"] == list(STATUS.notices)
    assert summary["best"]["trial"] == 1

    said = capsys.readouterr().out
    assert "best: trial 1, val/objective 1.5, transition at step 40" in said
    assert "transition.at_step 40, second_stage.optimizer.implementation fused\n" in said
    assert "steps: 30 trained now, 80 distinct, 140 without sharing (factor 1.75)" in said


def test_the_table_has_a_row_for_every_trial(recipe: Recipe, tmp_path: Path) -> None:
    failed = TrialLog(3, {"transition.at_step": 40}, status="failed", error="boom")
    succeeded, _ = report(numbered(failed, trial(1, 40, [4, 3, 1.5]), trial(0, 20, [4, 3, 2])), recipe, tmp_path)
    assert not succeeded
    with (tmp_path / "searches/s/trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == ["0", "1", "3"]
    assert rows[0] == {
        "trial": "0",
        "status": "finished",
        "transition.at_step": "20",
        "second_stage.optimizer.implementation": "",
        "transition_step": "20",
        "global_step": "40",
        "second_stage_step": "20",
        "train/loss": "1.0",
        "val/objective": "2",
        "key": segment_of("20-a-40").key,
    }
    assert rows[2]["status"] == "failed"
    assert rows[2]["val/objective"] == rows[2]["transition_step"] == ""


def test_the_best_recipe_can_be_trained_again(recipe: Recipe, tmp_path: Path) -> None:
    best = trial(0, 40, [4, 3, 1.5])
    best.parameters["second_stage.optimizer.lr"] = 3e-5
    report(numbered(best), recipe, tmp_path)
    assert load_recipe(tmp_path / "searches/s/best") == with_overrides(recipe, best.parameters)


def test_a_search_without_any_result_still_says_so(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = TrialLog(0, {}, status="failed", error="first_stage from step 0 to 20: boom")
    succeeded, summary = report(numbered(failed), recipe, tmp_path)
    assert not succeeded
    assert summary["best"] is None
    assert (summary["steps_distinct"], summary["sharing_factor"]) == (0, 1.0)
    assert not (tmp_path / "searches/s/best").exists()
    said = capsys.readouterr().out
    assert "trial 0 failed: first_stage from step 0 to 20: boom\n" in said
    assert "best: none, since no trial has run to its end\n" in said


def test_a_search_succeeds_if_a_trial_runs_to_its_end(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    diverged = dataclasses.replace(trial(1, 20, [4, 3, 99]), status="diverged", error="at step 40 it is 99")
    assert report(numbered(trial(0, 20, [4, 3, 2]), diverged), recipe, tmp_path)[0]
    assert "trial 1 diverged: at step 40 it is 99\n" in capsys.readouterr().out
    assert (tmp_path / "searches/s/best").is_dir()
    # Without one there is no best, nor what an earlier call has called so.
    succeeded, summary = report(numbered(diverged, trial(0, 20, [4, 3], "stopped")), recipe, tmp_path)
    assert not succeeded and summary["best"] is None and not (tmp_path / "searches/s/best").exists()


def test_a_finished_search_is_read_back_as_long_as_its_segments_are_there(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(str(tmp_path))
    assert read_finished(store, "searches/s") is None
    trials = numbered(trial(0, 20, [4, 3, 2]), trial(1, 40, [4, 3, 1.5], "stopped"))
    report(trials, recipe, tmp_path)
    assert read_finished(store, "searches/s") is None
    for log in trials.values():
        publish_last(store, log)
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
    write_trials(store, "searches/s", {}, None, 0)  # it has begun again
    assert read_finished(store, "searches/s") is None
    file.write_text(whole)
    (tmp_path / "segments" / trials[1].last["key"] / "record.json").write_text("{")
    assert read_finished(store, "searches/s") is None


def test_a_search_that_a_budget_has_stopped_says_what_is_left(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = numbered(trial(0, 20, [4, 3, 2, 2]), trial(1, 40, [4, 3, 2], "running"))
    asked = dataclasses.replace(search(), num_samples=2)
    leave_unfinished(asked, trials)
    assert [trials[number].status for number in sorted(trials)] == ["finished", *["unfinished"] * 3]
    stopped = replace(STATUS, stopped_by=Exceeded("gpu_hours", 2, 1))
    write_report(Store(str(tmp_path)), "searches/s", asked, recipe, trials, stopped, [], {}, 12.5)
    summary = json.loads((tmp_path / "searches/s/summary.json").read_text())
    assert (summary["trials"], summary["trials_by_status"]["unfinished"]) == (4, 3)
    assert summary["stopped_by"] == str(stopped.stopped_by)
    left = recipe.second_stage.num_steps - 10 + 2 * (recipe.transition.max_step + recipe.second_stage.num_steps)
    assert summary["steps_unfinished"] == left
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == (
        f"stopped by budget.gpu_hours: 2 of 1 are used; unfinished: 3 of 4 trials, at most {left} steps; "
        "raise it and run the same command again to go on"
    )
    for log in trials.values():
        publish_last(Store(str(tmp_path)), log)
    assert read_finished(Store(str(tmp_path)), "searches/s") is None


def test_a_search_with_a_failed_trial_is_not_finished(recipe: Recipe, tmp_path: Path) -> None:
    store, trials = Store(str(tmp_path)), numbered(trial(0, 20, [4, 3, 2]), trial(1, 40, [4], "failed"))
    for log in trials.values():
        publish_last(store, log)
    report(trials, recipe, tmp_path)
    assert read_finished(store, "searches/s") is None
