"""What experiment trackers are told of a search, and what becomes of one that cannot be used."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from latentsync_ray.config.errors import UserError
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.config.trackers import MLflowConfig, TrackersConfig, WandbConfig
from latentsync_ray.core.baselines import Role
from latentsync_ray.report.trials import Boundary, TrialResult, TrialStatus
from latentsync_ray.search import trackers
from latentsync_ray.search.trackers import Run, Tracker, check_trackers

AT, LR, SEED = "transition.at_step", "second_stage.optimizer.lr", "second_stage.seed"
NOBODY = "http://127.0.0.1:9"
"""Where no server listens."""


@dataclass
class Logger:
    """In the place of Ray Tune's callback."""

    points: dict[str, list[int]] = field(default_factory=dict)
    """Name of a run -> steps of its points."""
    ended: dict[str, bool] = field(default_factory=dict)
    """Name of a run -> whether it has failed."""
    values: dict[str, object] = field(default_factory=dict)
    fails_at: int | None = None

    def log_trial_start(self, run: Run) -> None:
        self.points.setdefault(run.name, [])
        self.values[run.name] = run.config

    def log_trial_result(self, step: int, run: Run, result: dict[str, Any]) -> None:
        if step == self.fails_at:
            raise ConnectionError("the server\nis gone")
        assert result == {"val/objective": 1 / step, "training_iteration": step, "timesteps_total": step}
        self.points[run.name].append(step)

    def log_trial_end(self, run: Run, failed: bool) -> None:
        self.ended[run.name] = failed

    def on_experiment_end(self, trials: list[Any]) -> None:
        """Nothing is left to send."""


def path(*keys: str, at: int = 8) -> tuple[Boundary, ...]:
    """Boundaries every 4 steps; keys that begin with t are of stage one."""
    steps = [4 * number for number in range(1, len(keys) + 1)]
    stages = ["first_stage" if key.startswith("t") else "second_stage" for key in keys]
    return tuple(
        Boundary(key, before, stage, step, max(0, step - at), {"val/objective": 1 / step})
        for key, before, stage, step in zip(keys, ("root", *keys), stages, steps, strict=False)
    )


def reported(logger: Logger, *trials: TrialResult) -> None:
    """Trials one after the other, told boundary by boundary."""
    with Tracker("mlflow", "search-1", "abc", logger) as tracker:
        for trial in trials:
            for number in range(len(trial.results) + 1):
                tracker.follow(replace(trial, results=trial.results[:number], status=TrialStatus.RUNNING))
            tracker.follow(trial)


def test_what_trials_share_is_a_run_of_its_own() -> None:
    logger, done = Logger(), TrialStatus.FINISHED
    first = TrialResult(0, {AT: 8, LR: 2e-4}, path("t1", "t2", "a3", "a4"), done)
    later = TrialResult(1, {AT: 12, LR: 2e-4}, path("t1", "t2", "t3", "b4", at=12), TrialStatus.DIVERGED)
    never = TrialResult(2, {"transition.max_step": 20}, path("t1", "t2", "t3", "t4"), done, role=Role.NEVER)
    again = TrialResult(3, {AT: 8, LR: 2e-4, SEED: 1}, path("t1", "t2", "c3"), done, role=Role.CONFIRMING)
    reported(logger, first, later, never, again, first)  # the last is gone through again
    names = ["trunk", "at8_lr2e-4", "at12_lr2e-4", "never", "confirm_at8_lr2e-4_seed1"]
    assert list(logger.points) == names
    assert list(logger.points.values()) == [[4, 8, 12, 16], [12, 16], [16], [16], [12]]
    assert logger.ended == {name: name == "at12_lr2e-4" for name in names}
    assert logger.values["at8_lr2e-4"] == {AT: 8, LR: 2e-4, "role": "searched"} and logger.values["trunk"] == {}


def test_trunks_that_part_are_several_runs() -> None:
    logger, done = Logger(), TrialStatus.FINISHED
    keys = [("t1", "t2", "t3"), ("t1", "t2x", "t3x"), ("t1y",)]
    reported(logger, *(TrialResult(number, {"seed": number}, path(*k), done) for number, k in enumerate(keys)))
    assert {name: steps for name, steps in logger.points.items() if name.startswith("trunk")} == {
        "trunk": [4, 8, 12],
        "trunk2": [8, 12],
        "trunk3": [4],
    }


def test_a_tracker_that_fails_is_no_end_of_the_search(capsys: pytest.CaptureFixture[str]) -> None:
    reported(Logger(fails_at=8), TrialResult(0, {}, path("t1", "t2", "t3"), TrialStatus.FINISHED))
    line = "note: trackers.mlflow: no longer reported to (the server is gone); the search goes on\n"
    assert capsys.readouterr().out == line


def searched(**asked: MLflowConfig | WandbConfig) -> SearchConfig:
    return SearchConfig("recipe", "search", trackers=TrackersConfig(**asked))


@pytest.mark.parametrize(("name", "asked"), [("mlflow", MLflowConfig()), ("wandb", WandbConfig())])
def test_a_missing_package_is_named(name: str, asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda package: None)
    with pytest.raises(
        UserError, match=rf"^trackers\.{name}: .* not installed; pip install 'latentsync_ray\[{name}\]'"
    ):
        check_trackers(searched(**{name: asked}))


def test_a_server_that_does_not_answer_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^trackers\.mlflow: cannot be used \([^\n]*127\.0\.0\.1[^\n]*$"):
        check_trackers(searched(mlflow=MLflowConfig(tracking_uri=NOBODY)))
    monkeypatch.setenv("WANDB_BASE_URL", NOBODY)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(trackers, "_ANSWER_SECONDS", 2)
    with pytest.raises(UserError, match=r"^trackers\.wandb: cannot be used \([^\n]*$"):
        check_trackers(searched(wandb=WandbConfig()))
