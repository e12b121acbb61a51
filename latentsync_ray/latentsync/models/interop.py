"""UNet weights in and out: LatentSync's own checkpoints and diffusers' folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from latentsync_ray.config.errors import UserError
from latentsync_ray.core.atomic import new_file, new_folder
from latentsync_ray.latentsync.models.pretrained import load_pretrained
from latentsync_ray.latentsync.models.tensors import read_tensors, readable_reason
from latentsync_ray.latentsync.models.unet import UNet3DConditionModel

OFFICIAL_SUFFIXES = (".pt", ".pth", ".ckpt")


def read_weights(source: str, device: str = "cpu") -> dict[str, Tensor]:
    """Reads a UNet's state dict.

    Args:
        source: An official checkpoint, `{"global_step": int, "state_dict": {name: tensor}}` (LatentSync,
            scripts/train_unet.py); a state dict alone (diffusers' .bin, a .safetensors file); or a folder or hub id
            of diffusers' `save_pretrained`.
        device: `meta` for names and shapes alone; of a checkpoint in torch's zip format only these are then read.

    Raises:
        UserError: There is no such file, or it is something else. A file is never unpickled.
    """
    try:
        if Path(source).suffix.lower() in (*OFFICIAL_SUFFIXES, ".bin", ".safetensors"):
            return read_tensors(Path(source), device)
        unet = load_pretrained(UNet3DConditionModel, source, exact=True)
    except (OSError, RuntimeError, ValueError) as error:
        reason = readable_reason(error)
        raise UserError(
            f"components.unet: {source} cannot be read ({reason}); name an official checkpoint or a UNet folder"
        ) from None
    return {name: tensor.to(device) for name, tensor in unet.state_dict().items()}


def write_official(path: Path, state_dict: Mapping[str, Tensor], global_step: int) -> None:
    """Writes a checkpoint that LatentSync's own scripts read, atomically."""
    with new_file(path) as made, made.open("wb") as file:
        torch.save({"global_step": global_step, "state_dict": dict(state_dict)}, file)


def write_diffusers(folder: Path, model: Mapping[str, object], state_dict: Mapping[str, Tensor]) -> None:
    """Writes a folder for `UNet3DConditionModel.from_pretrained`, which appears at once.

    Args:
        folder: Must be new or empty.
        model: The UNet's keyword arguments.
        state_dict: Its weights.
    """
    unet = UNet3DConditionModel(**model)
    unet.load_state_dict(dict(state_dict))
    with new_folder(folder) as made:
        unet.save_pretrained(made)
