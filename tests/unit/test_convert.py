"""SyncNet's and LPIPS' folders from files that hold tensors of the published names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from latentsync_ray.config.errors import UserError
from latentsync_ray.convert import main
from latentsync_ray.latentsync.losses import LPIPS
from latentsync_ray.latentsync.syncnet.config import load_syncnet
from latentsync_ray.latentsync.syncnet.model import StableSyncNet
from latentsync_ray.latentsync.syncnet.training import build_syncnet
from latentsync_ray.shipped import shipped_files

ENCODER = {"attn_blocks": [0, 1], "dropout": 0.0}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """configs/256/syncnet.yaml with a small model."""
    values = yaml.safe_load((shipped_files() / "configs" / "256" / "syncnet.yaml").read_text())
    audio = {"in_channels": 1, "block_out_channels": [32, 64], "downsample_factors": [[20, 13], [4, 4]]}
    visual = {"in_channels": 48, "block_out_channels": [32, 64], "downsample_factors": [[4, 8], 4]}
    values["model"] = {"audio_encoder": audio | ENCODER, "visual_encoder": visual | ENCODER}
    file = tmp_path / "syncnet.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("zip_file", [True, False])
def test_syncnet(config: Path, tmp_path: Path, zip_file: bool) -> None:
    weights = build_syncnet(load_syncnet(config, [])).state_dict()
    weights = {name: tensor + 1 for name, tensor in weights.items()}
    content = {"global_step": 7, "state_dict": weights, "train_loss_list": [0.5, 0.25]}
    torch.save(content, tmp_path / "stable_syncnet.pt", _use_new_zipfile_serialization=zip_file)
    arguments = ["syncnet", str(tmp_path / "stable_syncnet.pt"), str(tmp_path / "models" / "syncnet")]
    assert main([*arguments, "--config", str(config)]) == 0
    assert left(tmp_path / "models") == ["syncnet"]
    loaded = StableSyncNet.from_pretrained(tmp_path / "models" / "syncnet")
    assert loaded.config["resolution"] == 256
    assert loaded.state_dict().keys() == weights.keys()
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in weights.items())


def test_lpips(tmp_path: Path) -> None:
    lpips = LPIPS(channels=(4, 5, 6, 7, 7))
    weights = {name: torch.rand_like(tensor) for name, tensor in lpips.state_dict().items()}
    vgg16 = {name: tensor for name, tensor in weights.items() if name.startswith("features.")}
    # torchvision's file is in the format from before torch 1.6.
    torch.save({**vgg16, "classifier.0.bias": torch.zeros(2)}, tmp_path / "v", _use_new_zipfile_serialization=False)
    torch.save({name: tensor for name, tensor in weights.items() if name.startswith("lin")}, tmp_path / "l")
    assert main(["lpips", str(tmp_path / "v"), str(tmp_path / "l"), str(tmp_path / "lpips")]) == 0
    loaded = LPIPS.from_pretrained(tmp_path / "lpips").state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())


class Foreign:
    """What only an unpickler could read."""


def test_what_does_not_fit_is_one_line_and_leaves_nothing(config: Path, tmp_path: Path) -> None:
    weights = build_syncnet(load_syncnet(config, [])).state_dict()
    name = "audio_encoder.conv_in.weight"
    other = {key: value for key, value in weights.items() if key != "audio_encoder.conv_in.bias"}
    other |= {name: torch.zeros(2, 2), "unet.weight": torch.zeros(1)}
    files = {
        "other.pt": {"state_dict": other},
        "list.pt": [1, 2],
        "foreign.pt": {"state_dict": weights, "optimizer": Foreign()},
    }
    for file, content in files.items():
        torch.save(content, tmp_path / file)
    (tmp_path / "page.pt").write_text("<!DOCTYPE html>")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "other.pt").read_bytes()[:-500])
    (tmp_path / "page.safetensors").write_text("<!DOCTYPE html>")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    before = left(tmp_path)

    def complaint(file: str, folder: str = "out") -> str:
        arguments = ["syncnet", str(tmp_path / file), str(tmp_path / folder), "--config", str(config)]
        with pytest.raises(UserError) as error:
            main(arguments)
        assert left(tmp_path) == before
        assert "\n" not in str(error.value)
        return str(error.value).removeprefix(f"{tmp_path}/")

    assert complaint("other.pt").startswith(
        "other.pt: must hold exactly the network's tensors, but lacks audio_encoder.conv_in.bias, has besides "
        f"unet.weight, has in another shape {name}; "
    )
    reasons = {
        "list.pt": "it must hold `global_step` and `state_dict`",
        "foreign.pt": f"it holds a {Foreign.__module__}.Foreign beside tensors",
        "page.pt": "it is no checkpoint",
        "cut.pt": "",
        "page.safetensors": "Error while deserializing header",
        "none.pt": "[Errno 2] No such file or directory",
    }
    for file, reason in reasons.items():
        assert complaint(file).startswith(f"{file}: cannot be read ({reason}"), file
    assert complaint("other.pt", "full").startswith("full: must be a new or an empty folder")
