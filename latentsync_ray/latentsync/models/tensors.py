"""Tensors by name from published files."""

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from latentsync_ray.config.recipe import UserError

_MOST_NAMES = 4


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Reads a state dict from a .safetensors file, or from a file of `torch.save`, which is never unpickled.

    A file of `torch.save` holds the state dict itself, or has it under `state_dict`, as LatentSync writes it.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file; correct the name")
    try:
        if file.suffix == ".safetensors":
            return dict(load_file(file))
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # its own text advises to unpickle
        rule = "must be a file of torch.save that holds tensors and plain values alone"
        raise UserError(f"{file}: {rule}, and is something else; take the published file") from None
    except (OSError, EOFError, RuntimeError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split()) or "it is empty"
        raise UserError(f"{file}: must be a whole file of tensors ({reason}); download it again") from None
    state_dict = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state_dict, dict) or not all(isinstance(value, Tensor) for value in state_dict.values()):
        raise UserError(f"{file}: must hold tensors by name, holds something else; take the published file")
    return state_dict


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
