"""The UNet of any trial or segment comes out of the store, and mistakes are told in one line."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
import torch
from records import make_segment, make_trained

from latentsync_ray.config.errors import UserError
from latentsync_ray.config.loading import load_recipe
from latentsync_ray.core.trial_recipe import TrialRecipe
from latentsync_ray.export import main
from latentsync_ray.latentsync.models.interop import read_weights
from latentsync_ray.latentsync.models.unet import UNet3DConditionModel
from latentsync_ray.planning.simulation import PlannedTrial
from latentsync_ray.report.trials import Boundary, TrialResult, TrialStatus
from latentsync_ray.report.trials_file import write_trials
from latentsync_ray.store import Store

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A finished search with two trials, one of which was stopped in stage one."""
    steps = {"transition.min_step": 40, "transition.at_step": 40, "transition.plateau": None}
    recipe, store = load_recipe(ROOT / "configs" / "demo", steps), Store(str(tmp_path / "store"))
    reached = []
    for seed, segment in enumerate(list(PlannedTrial(0, TrialRecipe.of(recipe), "0" * 64).walk())[:2]):
        torch.manual_seed(seed)
        unet = UNet3DConditionModel(**segment.config["model"])
        state = {f"model.{name}": tensor for name, tensor in unet.state_dict().items()}
        store.publish(make_trained(segment), {**state, "optimizer.x": torch.zeros(1)})
        reached.append(Boundary.after(segment, {}))
    folder = "searches/demo-1234"
    trials = [
        TrialResult(0, {}, tuple(reached), TrialStatus.FINISHED),
        TrialResult(1, {}, (reached[0],), TrialStatus.STOPPED),
        TrialResult(2, {}, status=TrialStatus.FAILED),
    ]
    write_trials(store, folder, trials, trials[0], 0)
    return tmp_path / "store" / folder


@pytest.mark.parametrize(
    ("arguments", "step", "has_motion_modules"),
    [([], 80, True), (["--stage", "first_stage"], 40, False), (["--trial", "1"], 40, False)],
)
def test_a_trials_unet_comes_out(
    arguments: list[str], step: int, has_motion_modules: bool, results: Path, tmp_path: Path
) -> None:
    assert main([str(results), str(tmp_path / "unet.pt"), *arguments]) == 0
    content = torch.load(tmp_path / "unet.pt", weights_only=True)
    assert content["global_step"] == step
    assert any("motion_modules." in name for name in content["state_dict"]) == has_motion_modules

    main([str(results), str(tmp_path / "unet"), *arguments])
    again = read_weights(str(tmp_path / "unet"))
    assert again.keys() == content["state_dict"].keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in content["state_dict"].items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trial", "2"], "--trial: must be one of 0, 1, got 2"),
        (["--trial", "1", "--stage", "second_stage"], "--stage: trial 1 has not been in second_stage"),
    ],
)
def test_what_is_not_there_is_named(arguments: list[str], message: str, results: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        main([str(results), str(tmp_path / "unet.pt"), *arguments])
    assert not (tmp_path / "unet.pt").exists()


def test_any_stored_segment_comes_out(results: Path, tmp_path: Path) -> None:
    """By its key or the beginning of it, whatever the search has made of it."""
    store = Store(str(results.parents[1]))
    (results / "trials.json").unlink()
    for number, key in enumerate(store.keys()):
        for beginning in (key, key[:8]):
            out = tmp_path / f"{number}-{beginning}.pt"
            assert main([str(results), str(out), "--segment", beginning]) == 0
            content, record = torch.load(out, weights_only=True), store.read_record(key)
            assert content["global_step"] == record.segment.end_step
            state = store.read_state(key, record.state.sha256)
            assert {f"model.{name}" for name in content["state_dict"]} == state.keys() - {"optimizer.x"}
            assert all(torch.equal(state[f"model.{n}"], tensor) for n, tensor in content["state_dict"].items())


def test_a_segment_that_cannot_come_out_is_named_in_one_line(results: Path, tmp_path: Path) -> None:
    store = Store(str(results.parents[1]))
    dropped, damaged = store.keys()
    store.drop_state(dropped)
    (results.parents[1] / "segments" / damaged / "record.json").write_text("{")
    (results.parents[1] / "segments" / ("f" * 64)).mkdir()  # begun, and not finished
    alike = next(s for s in map(make_segment, count()) if s.key[0] == dropped[0])
    store.publish(make_trained(alike), {"model.weight": torch.zeros(1)})
    mistakes = [
        (
            ["--segment", "xyz"],
            f"--segment: must be the key of a segment in {store.root}, or its beginning, got xyz;",
        ),
        (["--segment", "f" * 64], "--segment: must be the key of a segment"),
        (["--segment", dropped[0]], f"--segment: 2 keys begin with {dropped[0]}; give more of it"),
        (["--segment", dropped], f"segment {dropped[:12]}: its state is no longer kept; export another segment"),
        (["--segment", damaged], f"--segment: {store.root}/segments/{damaged}/record.json: is no whole file; run"),
        (["--segment", dropped, "--trial", "0"], "--segment: must stand alone"),
        (["--segment", dropped, "--stage", "first_stage"], "--segment: must stand alone"),
    ]
    for arguments, line in mistakes:
        with pytest.raises(UserError) as error:
            main([str(results), str(tmp_path / "unet.pt"), *arguments])
        assert str(error.value).startswith(line) and "\n" not in str(error.value)
    assert not (tmp_path / "unet.pt").exists()


def test_nothing_is_overwritten_and_a_lost_state_is_named(results: Path, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    with pytest.raises(UserError, match="there: must not exist yet"):
        main([str(results), str(tmp_path / "there")])
    with pytest.raises(UserError, match="must be a folder that a search has printed last"):
        main([str(tmp_path), str(tmp_path / "unet.pt")])
    for state in results.parents[1].glob("segments/*/state.safetensors"):
        state.unlink()
    with pytest.raises(UserError, match=r"state\.safetensors: is gone; delete that segment's folder"):
        main([str(results), str(tmp_path / "unet.pt")])
