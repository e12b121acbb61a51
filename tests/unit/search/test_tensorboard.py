"""What TensorBoard shows of a search."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from PIL import Image
from records import make_trained
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from latentsync_ray.core.baselines import Role
from latentsync_ray.core.record import Speed, Timings
from latentsync_ray.core.segment import Segment
from latentsync_ray.report.trials import Boundary, TrialResult, TrialStatus
from latentsync_ray.search.tensorboard import TensorBoardLog
from latentsync_ray.store import Store


def test_tensorboard_shows_what_trials_report(tmp_path: Path) -> None:
    """Two trials with a stage one in common: losses of every step, metrics and a picture of every boundary."""
    store = Store(str(tmp_path))
    log = TensorBoardLog(store, "searches/s", "val/objective")
    trials = [TrialResult(0, {"lr": 2e-4}), TrialResult(1, {}, role=Role.NEVER)]

    def reach(number: int, key: str, stage: str, start: int, losses: list[float], value: float, colour: Any) -> None:
        picture = io.BytesIO()
        Image.new("RGB", (6, 4), colour).save(picture, "PNG")
        end = start + len(losses)
        segment = Segment(key, stage, {"num_workers": 1}, start, start, end)
        trained = make_trained(segment, steps=[{"loss": loss, "lr": loss / 8} for loss in losses])
        trained = replace(trained, timings=Timings(*[0.5] * 5), speed=Speed(8, 12.0, 0.25))
        store.publish(trained, {"model.weight": torch.zeros(1)}, picture.getvalue())
        means = {"train/loss": sum(losses) / len(losses), "val/objective": value}
        known = trials[number]
        trials[number] = replace(known, results=(*known.results, Boundary.after(segment, means)))
        log.follow(trials[number])

    branches = [([8.0, 6.0, 4.0], 2.0, (4, 5, 6)), ([16.0, 12.0, 9.0], 3.0, (7, 8, 9))]
    for number, branch in enumerate(branches):
        reach(number, "trunk", "first_stage", 0, [0.5, 0.25], 4.0, (1, 2, 3))
        reach(number, f"branch-{number}", "second_stage", 2, *branch)
        for status in (TrialStatus.RUNNING, TrialStatus.FINISHED, TrialStatus.FINISHED):
            log.follow(replace(trials[number], status=status))  # one that is gone through again is told again
        log.follow(replace(trials[number], results=trials[number].results[:1]))

    for number, (losses, value, colour) in enumerate(branches):
        folder = tmp_path / f"searches/s/tensorboard/trial-000{number}"
        events = EventAccumulator(str(folder), {"scalars": 0, "images": 0}).Reload()  # 0: all of them
        start = HParamsPluginData.FromString(
            events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        )
        values = {
            name: value.string_value or value.number_value for name, value in start.session_start_info.hparams.items()
        }
        assert values == {**trials[number].config, "role": str(trials[number].role)}
        curves = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.scalars.Keys()}
        for stage, step in (("first_stage", 2), ("second_stage", 5)):
            for name, figure in (
                ("speed/samples_per_second", 12.0),
                ("speed/mfu", 0.25),
                ("speed/peak_memory_bytes", 8),
            ):
                assert curves.pop(f"{stage}/{name}") == [(step, figure)]
            for part in ("restore", "train", "validate", "publish", "wait"):
                assert curves.pop(f"{stage}/timings/{part}_seconds") == [(step, 0.5)]
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


def test_no_file_stays_open(tmp_path: Path) -> None:
    """As a process may open 1,024 files, and a search may have more trials."""
    log = TensorBoardLog(Store(str(tmp_path)), "searches/s", "val/objective")
    before = psutil.Process().num_fds()
    for number in range(50):
        segment = Segment("root", "first_stage", {"num_workers": 1}, 0, 0, 4)
        log.follow(TrialResult(number, {}, (Boundary.after(segment, {"val/objective": 1.0}),)))
    assert psutil.Process().num_fds() == before
    assert len(list(tmp_path.rglob("events.out.*"))) == 50
