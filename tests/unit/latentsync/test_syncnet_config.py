"""The settings of a SyncNet's training: what the committed files say, and the rules of single values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from latentsync_ray.config.errors import UserError
from latentsync_ray.config.loading import load_recipe
from latentsync_ray.latentsync.data.config import DataConfig, SyntheticConfig
from latentsync_ray.latentsync.optimizer import LRSchedulerConfig, OptimizerConfig
from latentsync_ray.latentsync.syncnet.config import SyncNetConfig, load_syncnet

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


def test_the_demos_syncnet_learns_from_the_demos_clips() -> None:
    config, recipe = load_syncnet(CONFIGS / "demo" / "syncnet.yaml", []), load_recipe(CONFIGS / "demo")
    assert config.data == recipe.data
    assert (config.vae, config.audio_encoder) == (recipe.components.vae, recipe.components.audio_encoder)


def test_the_official_training_has_the_official_values(shared: Path) -> None:
    config = load_syncnet(CONFIGS / "256" / "syncnet.yaml", [])
    manifest = json.loads((shared / "golden" / "manifest_syncnet_16_pixel_attn.json").read_text())
    assert config.model == manifest["model"]
    assert (config.data.num_frames, config.resolution, config.batch_size) == (16, 256, 256)
    assert config.optimizer == OptimizerConfig(lr=1e-5, max_grad_norm=1.0)
    assert (config.lr_scheduler.name, config.validate_every_steps) == ("constant", 2500)
    assert config.data == load_recipe(CONFIGS / "256").data


def test_arguments_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "configs" / "syncnet.yaml"
    file.parent.mkdir()
    file.write_text("data: {folder: ../clips}\nmodel: {}\nvae: ../vae\naudio_encoder: org/whisper\noutput: out\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = load_syncnet(file, [])
    assert config.data.folder == str(tmp_path / "clips")
    assert (config.vae, config.audio_encoder, config.output) == (str(tmp_path / "vae"), "org/whisper", "out")
    config = load_syncnet(
        file, ["data.folder=here", "vae=./mine", "optimizer.lr=1e-4", "model.visual_encoder={a: 1}"]
    )
    assert config.data.folder == str(tmp_path / "elsewhere" / "here")
    assert (config.vae, config.optimizer.lr) == (str(tmp_path / "elsewhere" / "mine"), 1e-4)
    assert config.model == {"visual_encoder": {"a": 1}}
    with pytest.raises(UserError, match=r"argument: batch_size: must be a multiple of .* \(6\), got 256"):
        load_syncnet(file, ["num_workers=3"])
    with pytest.raises(UserError, match=r"argument rate: .*; see .*/syncnet/config.py for the fields"):
        load_syncnet(file, ["rate=3"])


DATA = DataConfig("clips")


def settings(**values: Any) -> SyncNetConfig:
    return SyncNetConfig(**{"data": DATA, "model": {}, "output": "out"} | values)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 9}, "batch_size"),
        ({"batch_size": 8, "num_workers": 2, "gradient_accumulation_steps": 2, "windows_per_clip": 4}, "batch_size"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps"),
        ({"num_steps": 0}, "num_steps"),
        ({"validate_every_steps": 0}, "validate_every_steps"),
        ({"num_workers": 0}, "num_workers"),
        ({"num_threads": 0}, "num_threads"),
        ({"windows_per_clip": 1}, "windows_per_clip"),
        ({"num_validation_windows": 1}, "num_validation_windows"),
        ({"resolution": 63}, "resolution"),
        ({"model": {"visual_encoder": {"in_channels": 24}}}, "model.visual_encoder.in_channels"),
        ({"data": DataConfig("clips", synthetic=SyntheticConfig()), "audio_encoder": "a"}, "vae"),
        ({"data": DataConfig("clips", synthetic=SyntheticConfig()), "vae": "v"}, "audio_encoder"),
        ({"off_sync_share": 1.0}, "off_sync_share"),
        ({"seed": -1}, "seed"),
    ],
)
def test_a_rule_that_a_value_breaks_is_named(values: dict[str, Any], field: str) -> None:
    complaints = list(settings(**values).complaints())
    assert complaints[0][0] == field
    assert all(rule and remedy for _, rule, remedy in complaints)


def test_values_at_the_edge_of_a_rule_are_fine() -> None:
    edge = settings(batch_size=8, num_workers=2, windows_per_clip=4, num_validation_windows=2, resolution=2)
    assert list(edge.complaints()) == []
    assert list(settings(lr_scheduler=LRSchedulerConfig("constant")).complaints()) == []
