"""What a running search looks like, on trials made by hand."""

import io

from rich.console import Console

from latentsync_ray.config.domains import Grid, Uniform
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.core.record import Speed, Timings
from latentsync_ray.core.segment import Segment
from latentsync_ray.core.training import StepWork
from latentsync_ray.engine.messages import EngineStatus, InTraining, StageTotals
from latentsync_ray.engine.speed import segment_speed
from latentsync_ray.engine.totals import Totals
from latentsync_ray.report.trials import Boundary, TrialResult, TrialStatus
from latentsync_ray.search.screen import Screen, speed_line


def test_time_and_speed_of_a_stage_are_told() -> None:
    totals, segment = Totals(), Segment("root", "first_stage", {}, 0, 0, 10)
    totals.add(segment, Timings(1.0, 60.0, 20.0, 0.0, 9.0), Speed(1 << 30, 100.0, 0.1))
    totals.add(segment, Timings(0.0, 60.0, 20.0, 10.0, 20.0), Speed(3 << 30, 127.0, 0.183))
    assert speed_line("first_stage", totals.by_stage["first_stage"]) == (
        "first_stage: 127 samples/s, 3.0 GiB, 18.3% of the peak; "
        "training 60%, validation 20%, publishing 5%, restoring 0%, waiting 14%"
    )
    assert speed_line("second_stage", StageTotals(newest_speed=Speed(1 << 29))).startswith("second_stage: 0.5 GiB;")


def test_speed_is_that_of_the_steps_that_were_taken() -> None:
    speed = segment_speed(StepWork(8, 2e12, 1e14), num_steps=5, train_seconds=2.0)
    assert (speed.samples_per_second, speed.mfu) == (20.0, 0.05)
    assert speed.peak_memory_bytes > 1 << 20
    assert segment_speed(StepWork(8), 5, 2.0).mfu is None
    assert segment_speed(None, 5, 2.0).samples_per_second is None


LR, AT_STEP = "second_stage.optimizer.lr", "transition.at_step"
SPACES = {
    "transition": {LR: Grid((2e-4, 3.2e-3)), AT_STEP: Grid((280, 640))},
    "pbt": {
        "second_stage.loss.lpips": Uniform(0.05, 0.4),
        "second_stage.loss.sync": Uniform(0.02, 0.2),
        LR: Uniform(2e-5, 2e-3),
        AT_STEP: Grid((280, 640)),
    },
}


def search(name: str = "transition") -> SearchConfig:
    return SearchConfig(recipe="r", name=name, param_space=SPACES[name])


def trial(
    number: int,
    objective: float,
    second: int = 20,
    status: TrialStatus = TrialStatus.RUNNING,
    names: tuple[str, ...] = (LR, AT_STEP),
) -> TrialResult:
    """It has left stage one at step 640, or is there."""
    stage = "second_stage" if second else "first_stage"
    end = Boundary(f"k{number}", "p", stage, 640 + second, second, {"val/objective": objective})
    values = {LR: 0.0003217, AT_STEP: 640, "second_stage.loss.sync": 0.0512, "second_stage.loss.lpips": 0.3456}
    return TrialResult(
        number, {name: values[name] for name in names}, (end,), status, asked={"trunk": 640, end.key: second}
    )


def status() -> EngineStatus:
    totals, segment = Totals(), Segment("root", "first_stage", {}, 600, 0, 640)
    totals.add(segment, Timings(0.0, 6.0, 1.0, 0.0, 1.0), Speed(3 << 30, 12.0))
    return EngineStatus((InTraining("group-1", segment, 4),), num_groups=2, num_starting=1, trained=totals.by_stage)


def rendered(name: str, trials: list[TrialResult]) -> list[str]:
    console = Console(file=io.StringIO(), width=60, height=40)
    console.print(Screen(search(name), 40).body(status(), trials, seconds=83.0, left=200.0))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_sixty_columns_hold_all_names_and_values() -> None:
    trials = [trial(10, 0.15324), trial(11, 0.25), trial(12, 0.2, second=0)]
    lines = [line.rstrip() for line in rendered("transition", trials)]
    header = next(number for number, line in enumerate(lines) if line.lstrip().startswith("#"))
    assert [line.split() for line in lines[header : header + 4]] == [
        ["#", "lr", "at_step", "step", "objective", "status"],
        ["10", "3.22e-4", "640", "640+20", "0.1532", "running"],
        ["11", "3.22e-4", "640", "640+20", "0.25", "running"],
        ["12", "3.22e-4", "640", "640", "0.2", "running"],
    ]
    assert lines[0].split()[1:] == ["29%", "about", "3", "min", "left"]
    assert max(map(len, lines)) <= 60
    crowded = rendered("pbt", [trial(10, 0.15324, status=TrialStatus.DIVERGED, names=tuple(SPACES["pbt"]))])
    table = next(line for line in crowded if line.lstrip().startswith("#")).split()
    assert table == ["#", "lpips", "sync", "lr", "at_step", "step", "objective", "status"]
    assert max(map(len, crowded)) <= 60


def test_the_best_so_far_is_one_that_ended_if_there_is_one() -> None:
    screen = Screen(search(), 40)
    running, ended = trial(0, 0.1), trial(1, 0.15324, 40, TrialStatus.FINISHED)
    assert screen.line(status(), [running, ended], left=80.0) == (
        "trials: 1 finished, 1 running, 2 to come; 1 worker groups, 1 starting; "
        "steps: 40 trained for 1,340 (97% shared); "
        "best so far: trial 1 (lr 3.217e-4, at_step 640): objective 0.1532 at 640+40; "
        "about 80 s left"
    )
    assert "best so far: trial 0" in screen.line(status(), [running, trial(1, 0.2)], None)
    assert "best" not in screen.line(EngineStatus(), [TrialResult(0, {})], None)


def test_phases() -> None:
    screen = Screen(search(), 40)
    assert screen.phase(EngineStatus(num_groups=1, num_starting=1), []) == "starting workers"
    assert screen.phase(status(), [trial(0, 0.1)]) == "training"
