"""UNet weights in and out: LatentSync's own checkpoints and diffusers' folders."""

from __future__ import annotations

import pickle
import re
import tempfile
import textwrap
import zipfile
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

_REMEDY = "name an official checkpoint or a UNet folder"
_PARALLEL_PREFIX = "module."
"""What torch's DataParallel puts before each name."""


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
    suffix = Path(source).suffix.lower()
    try:
        if suffix in (*OFFICIAL_SUFFIXES, ".bin"):
            return _without_prefix(_read_checkpoint(source, device))
        if suffix == ".safetensors":
            return _without_prefix({name: tensor.to(device) for name, tensor in load_file(source).items()})
        unet = load_pretrained(UNet3DConditionModel, source, exact=True)
        return {name: tensor.to(device) for name, tensor in unet.state_dict().items()}
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise UserError(f"components.unet: {source} cannot be read ({_reason(error)}); {_REMEDY}") from None


def _read_checkpoint(source: str, device: str) -> dict[str, Tensor]:
    is_zip = zipfile.is_zipfile(source)  # which torch writes since 1.6; what is older cannot be mapped
    content = torch.load(source, map_location=device, weights_only=True, mmap=is_zip)
    weights = content.get("state_dict", content) if isinstance(content, dict) else None
    if not weights or not isinstance(weights, dict) or not all(isinstance(t, Tensor) for t in weights.values()):
        rule = "must hold `global_step` and `state_dict`, or tensors alone"
        raise UserError(f"components.unet: {rule}, {source} does not; {_REMEDY}")
    return weights


def _without_prefix(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    if not all(name.startswith(_PARALLEL_PREFIX) for name in weights):
        return weights
    return {name.removeprefix(_PARALLEL_PREFIX): tensor for name, tensor in weights.items()}


def _reason(error: Exception) -> str:
    """What is wrong, without torch's advice to unpickle the file, and without what formats a terminal."""
    text = str(error)
    if found := re.search(r"Unsupported global: GLOBAL (\S+)", text):
        return f"it holds a {found[1]} beside tensors, texts and numbers, and unpickling that may run code"
    if isinstance(error, pickle.UnpicklingError):
        return "it is no checkpoint that torch has saved, or is damaged"
    words = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())
    return textwrap.shorten(words, 400, placeholder=" ...") or type(error).__name__


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
