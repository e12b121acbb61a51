"""A clip's mouth made anew, as an mp4 with its sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from records import make_trained
from torch import Tensor

from latentsync_ray.config.errors import UserError
from latentsync_ray.config.loading import load_recipe, recipe_files
from latentsync_ray.core.course import first_stage_segments
from latentsync_ray.core.trial_recipe import TrialRecipe
from latentsync_ray.generate import main
from latentsync_ray.latentsync.data.aligned import read_clip
from latentsync_ray.latentsync.data.media import Clip, face_mask, resize_mask, write_clip
from latentsync_ray.latentsync.data.synthetic import synthetic_clips
from latentsync_ray.latentsync.inputs import ready_inputs
from latentsync_ray.latentsync.models.unet import UNet3DConditionModel
from latentsync_ray.latentsync.preparation.prepare import prepare
from latentsync_ray.report.trials import Boundary, TrialResult, TrialStatus
from latentsync_ray.report.trials_file import write_trials
from latentsync_ray.store import Store

ROOT = Path(__file__).resolve().parents[2]
CLIPS = {clip.name: clip for clip in synthetic_clips(2, 1, 20, 64, 0)}
TRAINED_ON, HELD_OUT = "speaker0/00", "speaker1/00"


def search_over(folder: Path, overrides: dict[str, object]) -> Path:
    """The results of a search of one trial, whose UNet is new."""
    store, results = Store(str(folder / "store")), "searches/demo-1234"
    recipe = ready_inputs(load_recipe(ROOT / "configs" / "demo", overrides), store).recipe
    (segment,) = first_stage_segments(TrialRecipe.of(recipe), "0" * 64, 1)
    torch.manual_seed(0)
    unet = UNet3DConditionModel(**segment.config["model"])
    state = {f"model.{name}": tensor for name, tensor in unet.state_dict().items()}
    store.publish(make_trained(segment), state)
    trial = TrialResult(0, {}, (Boundary.after(segment, {}),), TrialStatus.FINISHED)
    write_trials(store, results, [trial], trial, 0)
    for name, text in recipe_files(recipe).items():
        store.write_bytes(f"{results}/best/{name}", text.encode())
    return folder / "store" / results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Over two short drawn clips."""
    folder = tmp_path_factory.mktemp("drawn")
    small = {"num_speakers": 2, "num_validation_speakers": 1, "clips_per_speaker": 1, "num_frames": 20}
    overrides = {f"data.synthetic.{name}": value for name, value in small.items()}
    return search_over(folder, overrides | {"data.folder": str(folder / "data")})


def upper_half(path: Path) -> Path:
    """Writes a mask that leaves the lower half as it is."""
    rows = np.where(np.arange(64)[:, None] < 32, 0, 255)
    Image.fromarray(rows.repeat(64, 1).astype(np.uint8)).save(path)
    return path


def check(path: Path, clip: Clip, mask: Tensor) -> None:
    """What the mask keeps is the clip's, but for the mp4's compression; the rest is not."""
    made = read_clip(path)
    assert made.frames.shape == (16, *clip.frames.shape[1:])  # two windows of 8; the rest is cut
    difference = torch.from_numpy(made.frames).float() - torch.from_numpy(clip.frames[:16])
    assert difference[:, mask.bool()].abs().mean() < 8
    assert difference[:, ~mask.bool()].abs().mean() > 20
    assert np.corrcoef(made.wave, clip.wave[: len(made.wave)])[0, 1] > 0.98


def test_a_prepared_clip_gets_a_new_mouth_and_keeps_the_rest(results: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    assert main([str(results), str(out), "--steps", "2"]) == 0
    check(out, CLIPS[HELD_OUT], face_mask(64))
    assert main([str(results), str(out), "--clip", TRAINED_ON, "--steps", "1", "--guidance", "1"]) == 0
    check(out, CLIPS[TRAINED_ON], face_mask(64))


def test_a_prepared_clip_needs_no_audio_encoder_and_has_its_own_mask(tmp_path: Path) -> None:
    demo = ROOT / "assets" / "demo"
    networks = {"vae": demo / "autoencoder", "audio_encoder": demo / "audio_encoder"}
    mask = upper_half(tmp_path / "mask.png")
    prepare(CLIPS.values(), tmp_path / "set", **networks, resolution=64, validation=[HELD_OUT], mask=mask)
    not_drawn = {"data.synthetic": None, "components.audio_encoder": None, "data.folder": str(tmp_path / "set")}
    results, out = search_over(tmp_path, not_drawn), tmp_path / "out.mp4"
    upper = (torch.arange(64)[:, None] >= 32).float().expand(64, 64)
    assert main([str(results), str(out), "--steps", "1"]) == 0
    check(out, CLIPS[HELD_OUT], upper)

    # An mp4 of another size gets the set's mask, resized; what the set does not hold must be named.
    write_clip(tmp_path / "mine.mp4", CLIPS[TRAINED_ON])
    own = ["--clip", str(tmp_path / "mine.mp4"), "--resolution", "32", "--steps", "1"]
    with pytest.raises(UserError, match="--audio-encoder: must be given"):
        main([str(results), str(out), *own])
    own += ["--audio-encoder", str(networks["audio_encoder"])]
    assert main([str(results), str(out), *own]) == 0
    check(out, read_clip(tmp_path / "mine.mp4", 32), resize_mask(upper, (32, 32)))

    # Without the set it must come with all that the set has.
    (tmp_path / "set").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"set/index\.json: cannot be read"):
        main([str(results), str(out), *own])
    assert main([str(results), str(out), *own, "--mask", str(mask)]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out.avi"], "out.avi: must be an .mp4"),
        (["out.mp4", "--steps", "0"], "--steps: must be from 1 to 1000"),
        (["out.mp4", "--resolution", "64"], "--resolution: is for an .mp4 of yours; leave it out"),
        (["out.mp4", "--clip", "speaker1/00", "--mask", "m.png"], "--mask: is for an .mp4 of yours; leave it out"),
        (["out.mp4", "--clip", "nobody"], "--clip: must be an .mp4 or one of the 2 clips of .*, got nobody"),
        (["out.mp4", "--clip", "a.mp4", "--resolution", "40"], "--resolution: must be a multiple of 16, is 40"),
        (["out.mp4", "--clip", "absent.mp4"], "absent.mp4: cannot be read"),
    ],
)
def test_mistakes_are_named(arguments: list[str], message: str, results: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        main([str(results), str(tmp_path / arguments[0]), *arguments[1:]])
    assert not (tmp_path / arguments[0]).exists()
