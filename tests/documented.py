"""The commands that README and docs have, and where each of them is run."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "README.zh.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = (
    "latentsync-ray",
    "make",
    "pip",
    "ray",
    "docker",
    "kubectl",
    "source",
    "tensorboard",
    "cd",
    "export",
    "unset",
)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """One simple command."""

    page: Path
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(self.words)


def blocks(page: Path, language: str = "") -> list[str]:
    """The fenced blocks of a page in a language; those of a shell have none."""
    return [text for name, text in _FENCE.findall(page.read_text()) if name == language]


def inline(page: Path) -> list[str]:
    """What stands between single backticks."""
    return re.findall(r"`([^`\n]+)`", _FENCE.sub("", page.read_text()))


def commands(page: Path) -> Iterator[Command]:
    """Every command of a page, those in the text too."""
    lines = [line for block in blocks(page) for line in block.replace("\\\n", " ").splitlines()]
    lines += [text for text in inline(page) if text.split()[0] in PROGRAMS and (len(text.split()) > 1)]
    for line in lines:
        words = shlex.shlex(line, posix=True, punctuation_chars="&")
        words.whitespace_split = True
        for is_operator, part in itertools.groupby(words, "&&".__eq__):
            if not is_operator:
                yield Command(page, tuple(part))


def all_commands() -> list[Command]:
    return [command for page in PAGES for command in commands(page)]


_REAL = "tests/integration/test_real_clips.py::test_a_search_on_real_clips"
_FOOTAGE = "tests/integration/test_preprocessing.py::test_footage_becomes_aligned_clips"
ELSEWHERE = {
    "latentsync-ray preprocess": _FOOTAGE,
    "latentsync-ray tune search_spaces/real_tiny.yaml": _REAL,
    "latentsync-ray train-syncnet": "tests/integration/test_train_syncnet.py::test_the_demos_own_training_learns",
    "latentsync-ray convert syncnet": "tests/unit/test_convert.py::test_syncnet",
    "latentsync-ray convert lpips": "tests/unit/test_convert.py::test_lpips",
    "latentsync-ray store results collect --end": (
        "tests/unit/store/test_upkeep.py::test_a_search_that_is_given_up_needs_nothing"
    ),
    "tensorboard": "tests/unit/search/test_tensorboard.py::test_tensorboard_shows_what_trials_report",
}
"""Beginnings of commands that the named test runs, with local networks in place of a hub's."""
CANNOT = {
    "latentsync-ray tune SPACE workers.use_gpu=true": "needs GPUs",
    "latentsync-ray train configs/256": "needs a GPU of 80 GB, and a checkpoint",
    "ray": "needs a cloud; `ray stop` would end other tests' clusters",
    "docker": "needs a registry",
    "kubectl": "needs a Kubernetes cluster",
    "pip install": "needs a package index (tests/soak/test_wheel.py installs the wheel without one)",
    "export PIP_EXTRA_INDEX_URL": "needs a package index",
    "source .venv/bin/activate": "belongs to the shell that it is typed in",
    "unset RAY_ADDRESS": "belongs to the shell that it is typed in",
}
"""Beginnings of commands that a machine without GPU, cloud and network cannot run, and why."""


def entry(command: Command) -> str | None:
    """The entry of `ELSEWHERE` or `CANNOT` that a command has; None if it is to be run here."""
    found = [known for known in (*ELSEWHERE, *CANNOT) if re.match(rf"{re.escape(known)}(?![\w/-])", command.text)]
    return max(found, key=len, default=None)
