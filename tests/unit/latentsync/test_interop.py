"""Weights in LatentSync's own format and in diffusers' come in and go out unchanged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from latentsync_ray.config.errors import UserError
from latentsync_ray.config.loading import load_recipe
from latentsync_ray.latentsync.models.interop import read_weights, write_diffusers, write_official
from latentsync_ray.latentsync.models.unet import UNet3DConditionModel, warm_start
from latentsync_ray.latentsync.stage import check_stage

ROOT = Path(__file__).resolve().parents[3]
RECIPE = load_recipe(ROOT / "configs" / "demo")
FIRST, SECOND = RECIPE.first_stage.model, RECIPE.second_stage.model


def random_unet(model: dict, seed: int = 0) -> UNet3DConditionModel:
    torch.manual_seed(seed)
    unet = UNet3DConditionModel(**model).eval()
    for parameter in unet.parameters():  # zero-initialised layers would hide a mistake
        torch.nn.init.normal_(parameter, std=0.05)
    return unet


@torch.no_grad()
def output(unet: UNet3DConditionModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(1, 13, 8, 8, 8, generator=generator)
    return unet(sample, torch.tensor([500]), torch.randn(1, 8, 50, 32, generator=generator)).sample


@pytest.mark.parametrize("model", [FIRST, SECOND], ids=["first_stage", "second_stage"])
@pytest.mark.parametrize("name", ["unet.pt", "unet"])
def test_an_exported_unet_gives_identical_outputs(name: str, model: dict, tmp_path: Path) -> None:
    unet = random_unet(model)
    if name.endswith(".pt"):
        write_official(tmp_path / name, unet.state_dict(), 640)
        content = torch.load(tmp_path / name, weights_only=True)
        assert set(content) == {"global_step", "state_dict"} and content["global_step"] == 640
    else:
        write_diffusers(tmp_path / name, model, unet.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == [name]
    again = random_unet(model, seed=1)
    warm_start(again, read_weights(str(tmp_path / name)))
    assert torch.equal(output(again), output(unet))


def test_a_handwritten_official_checkpoint_starts_either_stage(tmp_path: Path) -> None:
    weights = random_unet(FIRST).state_dict()
    torch.save({"global_step": 7, "state_dict": weights}, tmp_path / "stage1.pt")
    torch.save({"global_step": 7, "state_dict": random_unet(SECOND).state_dict()}, tmp_path / "stage2.pt")
    stage1, stage2 = str(tmp_path / "stage1.pt"), str(tmp_path / "stage2.pt")
    check_stage(RECIPE.first_stage, stage1)
    check_stage(RECIPE.second_stage, stage1)  # the motion modules are new
    check_stage(RECIPE.second_stage, stage2)
    unexpected = r"unexpected: down_blocks\.0\.motion_modules\.\S+, .* and \d+ more"
    with pytest.raises(UserError, match=rf"^components\.unet: .*stage2\.pt must fit .*{unexpected}"):
        check_stage(RECIPE.first_stage, stage2)


@pytest.mark.parametrize("change", ["missing", "unexpected", "some motion modules missing"])
def test_a_checkpoint_that_does_not_fit_names_its_keys(change: str, tmp_path: Path) -> None:
    weights = random_unet(SECOND).state_dict()
    named = next(n for n in weights if "motion_modules." in n) if "motion" in change else "conv_in.bias"
    value = weights.pop(named)
    if change == "unexpected":
        weights |= {named: value, "conv_in.extra": value}
        named = "conv_in.extra"
    write_official(tmp_path / "unet.pt", weights, 0)
    with pytest.raises(UserError, match=rf"^components\.unet: .*(missing|unexpected): {named}; name a checkpoint"):
        check_stage(RECIPE.second_stage, str(tmp_path / "unet.pt"))


@pytest.mark.parametrize(("change", "named"), [("missing", "conv_in.bias"), ("unexpected", "conv_in.extra")])
def test_a_folder_whose_weights_do_not_fit_names_its_keys(change: str, named: str, tmp_path: Path) -> None:
    unet = random_unet(FIRST)
    write_diffusers(tmp_path / "unet", FIRST, unet.state_dict())
    (file,) = (tmp_path / "unet").glob("*.safetensors")
    weights = load_file(file)
    if change == "missing":
        del weights[named]
    else:
        weights[named] = torch.zeros(1)
    save_file(weights, file)
    with pytest.raises(UserError, match=f"{change}: {named}"):
        read_weights(str(tmp_path / "unet"))


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"global_step": 0, "state_dict": {"a": Code()}}, tmp_path / "code.pt")
    torch.save({"weights": {}}, tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    (tmp_path / "text.safetensors").write_text("no checkpoint")
    for name in ("code.pt", "other.pt", "text.pt", "text.safetensors", "absent.pt"):
        with pytest.raises(UserError, match=rf"^components\.unet: .*{name}.*name an official checkpoint"):
            read_weights(str(tmp_path / name))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["old.pt", "UNET.PT", "parallel.pt", "diffusion_pytorch_model.bin", "U.SAFETENSORS"])
def test_other_ways_to_store_weights_are_read(name: str, tmp_path: Path) -> None:
    weights = random_unet(FIRST).state_dict()
    prefix = "module." if name == "parallel.pt" else ""
    stored = {f"{prefix}{key}": tensor for key, tensor in weights.items()}
    if name == "U.SAFETENSORS":
        save_file(stored, tmp_path / name)
    else:
        content = stored if name.endswith(".bin") else {"global_step": 7, "state_dict": stored}
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=name != "old.pt")
    found = read_weights(str(tmp_path / name))
    assert found.keys() == weights.keys() and all(torch.equal(found[key], weights[key]) for key in weights)
    check_stage(RECIPE.first_stage, str(tmp_path / name))


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_numpy_scalar_beside_the_weights_is_named(is_zip: bool, tmp_path: Path) -> None:
    content = {"global_step": 7, "state_dict": {"a": torch.zeros(1)}, "loss": np.float64(0.5)}
    torch.save(content, tmp_path / "unet.pt", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(UserError) as refused:
        read_weights(str(tmp_path / "unet.pt"))
    assert str(refused.value) == (
        f"components.unet: {tmp_path}/unet.pt cannot be read (it holds a numpy._core.multiarray.scalar beside"
        " tensors, texts and numbers, and unpickling that may run code); name an official checkpoint or a UNet folder"
    )


def test_a_long_reason_is_told_in_whole_words(tmp_path: Path) -> None:
    torch.save({"state_dict": {f"conv{i}.weight": torch.zeros(1) for i in range(99)}}, tmp_path / "unet.pt")
    with pytest.raises(UserError) as refused:
        check_stage(RECIPE.first_stage, str(tmp_path / "unet.pt"))
    assert "unexpected: conv0.weight, " in str(refused.value) and "conv7.weight and 91 more" in str(refused.value)
    assert "\x1b" not in str(refused.value)


def test_safetensors_come_in(tmp_path: Path) -> None:
    weights = random_unet(FIRST).state_dict()
    save_file(weights, tmp_path / "unet.safetensors")
    found = read_weights(str(tmp_path / "unet.safetensors"))
    assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)
    assert all(t.is_meta for t in read_weights(str(tmp_path / "unet.safetensors"), "meta").values())
