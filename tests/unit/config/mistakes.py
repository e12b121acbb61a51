"""What mistakes are made of: a command line, changes to the files that it reads, and what the answer must name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

RECIPE, FIRST, SECOND = (f"configs/demo/{name}.yaml" for name in ("recipe", "first_stage", "second_stage"))
SPACE = "search_spaces/transition.yaml"
TRAIN, TUNE = "train configs/demo", f"tune {SPACE}"
BOUNDARY = "report_every_steps"
SECRET = "${oc.env:HOME}"

Change = Callable[[Path], object]


@dataclass(frozen=True)
class Mistake:
    """A command line, what is wrong with the files that it reads, and what the answer has to name."""

    name: str
    command: str
    named: tuple[str, ...]
    change: Change = lambda folder: None


def write(file: str, content: bytes | str) -> Change:
    def change(folder: Path) -> None:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def append(file: str, text: str) -> Change:
    return lambda folder: (folder / file).write_text((folder / file).read_text() + text)


def remove(path: str) -> Change:
    return lambda folder: shutil.rmtree(folder / path) if (folder / path).is_dir() else (folder / path).unlink()


def put(file: str, *path: str, value: Any) -> Change:
    """Replaces or adds a value of a YAML file; None takes it out."""

    def change(folder: Path) -> None:
        content = section = yaml.safe_load((folder / file).read_text())
        for name in path[:-1]:
            section = section[name]
        section[path[-1]] = value
        if value is None:
            del section[path[-1]]
        (folder / file).write_text(yaml.safe_dump(content))

    return change


def space(parameter: str, definition: Any) -> Change:
    """A search space of this parameter alone."""
    return put(SPACE, "param_space", value={parameter: definition})
