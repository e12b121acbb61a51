"""UNet weights in and out: LatentSync's own checkpoints and diffusers' folders."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from latentsync_ray.config.errors import UserError
from latentsync_ray.latentsync.models.pretrained import load_pretrained
from latentsync_ray.latentsync.models.unet import UNet3DConditionModel

OFFICIAL_SUFFIXES = (".pt", ".pth", ".ckpt")


def read_weights(source: str, device: str = "cpu") -> dict[str, Tensor]:
    """Reads a UNet's state dict.

    Args:
        source: An official checkpoint, `{"global_step": int, "state_dict": {name: tensor}}` (LatentSync,
            scripts/train_unet.py); a .safetensors file; or a folder or hub id of diffusers' `save_pretrained`.
        device: `meta` for names and shapes alone; of an official checkpoint only these are then read.

    Raises:
        UserError: There is no such file, or it is something else. A file is never unpickled.
    """
    path, remedy = Path(source), "name an official checkpoint or a UNet folder"
    try:
        if path.suffix in OFFICIAL_SUFFIXES:
            content = torch.load(path, map_location=device, weights_only=True, mmap=True)
            weights = content.get("state_dict") if isinstance(content, dict) else None
            if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
                raise UserError(
                    f"components.unet: must hold `global_step` and `state_dict`, {source} does not; {remedy}"
                )
            return weights
        if path.suffix == ".safetensors":
            return {name: tensor.to(device) for name, tensor in load_file(path).items()}
        unet = load_pretrained(UNet3DConditionModel, source, exact=True)
        return {name: tensor.to(device) for name, tensor in unet.state_dict().items()}
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"components.unet: {source} cannot be read ({reason}); {remedy}") from None


def write_official(path: Path, state_dict: Mapping[str, Tensor], global_step: int) -> None:
    """Writes a checkpoint that LatentSync's own scripts read, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            torch.save({"global_step": global_step, "state_dict": dict(state_dict)}, file)
            file.close()
            Path(file.name).replace(path)
        finally:
            Path(file.name).unlink(missing_ok=True)


def write_diffusers(folder: Path, model: Mapping[str, object], state_dict: Mapping[str, Tensor]) -> None:
    """Writes a folder for `UNet3DConditionModel.from_pretrained`, which appears at once.

    Args:
        folder: Must not exist.
        model: The UNet's keyword arguments.
        state_dict: Its weights.
    """
    unet = UNet3DConditionModel(**model)
    unet.load_state_dict(dict(state_dict))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        unet.save_pretrained(Path(scratch) / "unet")
        (Path(scratch) / "unet").rename(folder)
