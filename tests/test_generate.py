"""A clip's mouth made anew, as an mp4 with its sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latentsync_ray.config import UserError
from latentsync_ray.configfiles import load_recipe, recipe_files
from latentsync_ray.data.media import face_mask, read_clip
from latentsync_ray.data.synthetic import synthetic_clips
from latentsync_ray.generate import main
from latentsync_ray.learn.unet import UNet3DConditionModel
from latentsync_ray.segment import next_segment
from latentsync_ray.store import Store
from latentsync_ray.triallog import TrialLog, write_trials

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A search with one trial, over two short drawn clips."""
    small = {"num_speakers": 2, "clips_per_speaker": 1, "num_frames": 20}
    recipe = load_recipe(ROOT / "configs" / "demo", {f"data.synthetic.{n}": value for n, value in small.items()})
    store, folder = Store(str(tmp_path / "store")), "searches/demo-1234"
    segment = next_segment(recipe, "0" * 64, None, False)
    assert segment is not None
    unet = UNet3DConditionModel(**segment.config["model"])
    state = {f"model.{name}": tensor for name, tensor in unet.state_dict().items()}
    store.publish(segment.key, {"segment": segment.to_dict()}, state)
    trial = TrialLog(0, {}, [{"key": segment.key}], "finished")
    write_trials(store, folder, {0: trial}, trial, 0)
    for name, text in recipe_files(recipe).items():
        store.write_bytes(f"{folder}/best/{name}", text.encode())
    return tmp_path / "store" / folder


def test_a_held_out_clip_gets_a_new_mouth_and_keeps_the_rest(results: Path, tmp_path: Path) -> None:
    assert main([str(results), str(tmp_path / "out.mp4"), "--steps", "2"]) == 0
    made = read_clip(tmp_path / "out.mp4")
    clip = list(synthetic_clips(2, 1, 20, 64, 0))[-1]
    assert made.frames.shape == (16, 64, 64, 3)  # two windows of 8; the rest is cut
    difference = torch.from_numpy(made.frames).float() - torch.from_numpy(clip.frames[:16]).float()
    kept = face_mask(64).bool()
    assert difference[:, kept].abs().mean() < 8  # what the mp4's compression takes
    assert difference[:, ~kept].abs().mean() > 20
    assert abs(made.wave).max() > 0.01

    # Another mask leaves another part as it was.
    rows = np.where(np.arange(64)[:, None] < 32, 0, 255)
    Image.fromarray(rows.repeat(64, 1).astype(np.uint8)).save(tmp_path / "mask.png")
    arguments = ["--steps", "1", "--mask", str(tmp_path / "mask.png")]
    assert main([str(results), str(tmp_path / "upper.mp4"), *arguments]) == 0
    upper = torch.from_numpy(read_clip(tmp_path / "upper.mp4").frames).float() - torch.from_numpy(clip.frames[:16])
    assert upper[:, 34:].abs().mean() < 8 and upper[:, :30].abs().mean() > 20

    # The file is itself a clip that can be given.
    arguments = ["--clip", str(tmp_path / "out.mp4"), "--resolution", "64", "--steps", "1", "--guidance", "1"]
    assert main([str(results), str(tmp_path / "again.mp4"), *arguments]) == 0
    assert len(read_clip(tmp_path / "again.mp4").frames) == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["out.avi"], "out.avi: must be an .mp4"), (["out.mp4", "--steps", "0"], "--steps: must be from 1 to 1000")],
)
def test_mistakes_are_named(arguments: list[str], message: str, results: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        main([str(results), str(tmp_path / arguments[0]), *arguments[1:]])
    assert not (tmp_path / arguments[0]).exists()
