"""The line that tells how fast a stage is trained."""

from latentsync_ray.core.record import Speed, Timings
from latentsync_ray.core.segment import Segment
from latentsync_ray.core.training import StepWork
from latentsync_ray.engine.messages import StageTotals
from latentsync_ray.engine.speed import segment_speed
from latentsync_ray.engine.totals import Totals
from latentsync_ray.search.live import speed_line


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
