"""Finds the class of a training by the name that a recipe gives."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from latentsync_ray.config.errors import UserError
from latentsync_ray.config.recipe import Recipe


def resolve_training(name: str) -> type:
    """The class of a training.

    Args:
        name: `module:Class` or `/folder/file.py:Class`.

    Raises:
        UserError: There is no such class, or it names no recipe.
    """
    place, _, attribute = name.rpartition(":")
    try:
        if not place or not attribute:
            raise ValueError("there is no class in it")
        found = getattr(_module(place), attribute)
        if not (isinstance(found, type) and issubclass(getattr(found, "recipe_type", object), Recipe)):
            raise TypeError(f"{attribute} has no recipe_type")
    except (ValueError, ImportError, AttributeError, TypeError, SyntaxError) as error:
        rule = "must be module:Class or file.py:Class"
        raise UserError(f"training: {rule}, got {name}: {error}; correct it") from None
    return found


def recipe_type(name: str) -> type[Recipe]:
    """The recipe's class of a training; see `resolve_training`."""
    found: type[Recipe] = resolve_training(name).recipe_type  # type: ignore[attr-defined]
    return found


def absolute(name: str, folder: Path) -> str:
    """The name of a training whose file may be relative to a folder."""
    place, colon, attribute = name.rpartition(":")
    return f"{(folder / Path(place).expanduser()).resolve()}{colon}{attribute}" if place.endswith(".py") else name


def _module(place: str) -> ModuleType:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    name = f"training_{hashlib.sha256(place.encode()).hexdigest()[:12]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, place)
        if spec is None or spec.loader is None or not Path(place).is_file():
            raise ImportError("there is no such file")
        module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look themselves up there
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
