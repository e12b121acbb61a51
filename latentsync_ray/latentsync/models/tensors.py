"""Tensors by name from files of torch and safetensors, none of which is unpickled."""

import pickle
import re
import textwrap
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from latentsync_ray.config.errors import UserError

_MOST_NAMES = 4
_PARALLEL_PREFIX = "module."
"""What torch's DataParallel puts before each name."""


def read_tensors(file: Path, device: str = "cpu") -> dict[str, Tensor]:
    """Reads a state dict, without what torch's DataParallel puts before each name.

    Args:
        file: A .safetensors file, or one of `torch.save` that holds a state dict, or one under `state_dict`, as
            LatentSync writes it.
        device: `meta` for names and shapes alone; of a file in torch's zip format only these are then read.

    Raises:
        ValueError: The file cannot be read, or holds something else; says why in one line.
    """
    try:
        if file.suffix.lower() == ".safetensors":
            weights: Any = {name: tensor.to(device) for name, tensor in load_file(file).items()}
        else:
            is_zip = zipfile.is_zipfile(file)  # which torch writes since 1.6; what is older cannot be mapped
            content = torch.load(file, map_location=device, weights_only=True, mmap=is_zip)
            weights = content.get("state_dict", content) if isinstance(content, dict) else None
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise ValueError(readable_reason(error)) from None
    if not weights or not isinstance(weights, dict) or not all(isinstance(t, Tensor) for t in weights.values()):
        raise ValueError("it must hold `global_step` and `state_dict`, or tensors alone, and does not")
    if all(name.startswith(_PARALLEL_PREFIX) for name in weights):
        return {name.removeprefix(_PARALLEL_PREFIX): tensor for name, tensor in weights.items()}
    return dict(weights)


def read_published(file: Path) -> dict[str, Tensor]:
    """`read_tensors` of a file that was downloaded.

    Raises:
        UserError: It cannot be read, or holds something else.
    """
    try:
        return read_tensors(file)
    except ValueError as error:
        raise UserError(f"{file}: cannot be read ({error}); take the published file") from None


def readable_reason(error: Exception) -> str:
    """What is wrong, without torch's advice to unpickle the file, and without what formats a terminal."""
    text = str(error)
    if found := re.search(r"Unsupported global: GLOBAL (\S+)", text):
        return f"it holds a {found[1]} beside tensors, texts and numbers, and unpickling that may run code"
    if isinstance(error, pickle.UnpicklingError):
        return "it is no checkpoint that torch has saved, or is damaged"
    words = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())
    return textwrap.shorten(words, 400, placeholder=" ...") or type(error).__name__


def check_shapes(file: Path, given: Mapping[str, Tensor], expected: Mapping[str, Tensor], remedy: str) -> None:
    """Compares the names and shapes of a file's tensors with those that a network has.

    Raises:
        UserError: they differ; says in what.
    """
    problems = {
        "lacks": _names(expected.keys() - given.keys()),
        "has besides": _names(given.keys() - expected.keys()),
        "has in another shape": _names(
            name for name in expected.keys() & given.keys() if expected[name].shape != given[name].shape
        ),
    }
    if any(problems.values()):
        found = ", ".join(f"{kind} {names}" for kind, names in problems.items() if names)
        raise UserError(f"{file}: must hold exactly the network's tensors, but {found}; {remedy}")


def _names(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _MOST_NAMES} more" if len(ordered) > _MOST_NAMES else ""
    return " ".join(ordered[:_MOST_NAMES]) + more
