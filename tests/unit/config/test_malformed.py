"""Users' mistakes, through the real commands: exit status 2, one line that names place and value, and no traces."""

from __future__ import annotations

import logging
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from input_mistakes import MISTAKEN_INPUTS, PREPARATION_MISTAKES
from mistakes import SPACE, Mistake, write
from recipe_mistakes import RECIPE_MISTAKES
from search_mistakes import SEARCH_MISTAKES

from latentsync_ray import preprocess, train, train_syncnet, tune
from latentsync_ray.cli import run_cli

ROOT = Path(__file__).resolve().parents[3]
MISTAKES = RECIPE_MISTAKES + SEARCH_MISTAKES + PREPARATION_MISTAKES
COMMANDS = {"train": train, "tune": tune, "train_syncnet": train_syncnet, "preprocess": preprocess}
IN_OWN_PROCESS = [
    "binary file",
    "unknown name",
    "unknown kind",
    "unknown setting",
    "file for a storage",
    "network that is not there",
    "folder without clips",
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: the demo's recipe and search space, with folders that stand for most networks."""
    shutil.copytree(ROOT / "configs" / "demo", tmp_path / "configs" / "demo")
    (tmp_path / "search_spaces").mkdir()
    shutil.copy(ROOT / SPACE, tmp_path / SPACE)
    shutil.copytree(ROOT / "assets" / "demo" / "autoencoder", tmp_path / "assets" / "demo" / "autoencoder")
    for name in ("audio_encoder", "syncnet", "lpips", "video_encoder"):
        write(f"assets/demo/{name}/config.json", "{}")(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def check_answer(mistake: Mistake, status: object, out: str, err: str) -> None:
    assert status == 2, err
    phases = {"starting Ray", "loading networks"} if mistake in MISTAKEN_INPUTS else set()
    assert {line.split("s  ")[-1].strip() for line in out.splitlines()} <= phases
    assert len(err.splitlines()) == 1, err
    assert err.startswith("error: ")
    for name in mistake.named:
        assert name in err


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray cluster for the inputs' mistakes, so that each need not start its own."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


def answer_to(
    mistake: Mistake, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Runs the command in this process and checks that it refuses, and that it has changed nothing."""
    mistake.change(folder)
    before = contents(folder)
    command, *arguments = shlex.split(mistake.command)
    monkeypatch.setattr(sys, "argv", [command, *arguments])
    capfd.readouterr()
    with pytest.raises(SystemExit) as end:
        run_cli(COMMANDS[command].main)
    check_answer(mistake, end.value.code, *capfd.readouterr())
    assert contents(folder) == before


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_is_one_clear_line_and_leaves_no_trace(
    mistake: Mistake, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def too_late(*args: object, **kwargs: object) -> None:
        raise AssertionError("the mistake was not found before Ray was started")

    monkeypatch.setattr("ray.init", too_late)
    answer_to(mistake, folder, monkeypatch, capfd)


@pytest.mark.parametrize("mistake", MISTAKEN_INPUTS, ids=lambda mistake: mistake.name)
def test_so_is_one_in_networks_and_clips(
    mistake: Mistake, cluster: None, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    answer_to(mistake, folder, monkeypatch, capfd)


@pytest.mark.slow  # each process imports torch and Ray before it looks at its arguments
@pytest.mark.parametrize("name", IN_OWN_PROCESS)
def test_so_it_is_in_a_process_of_its_own(name: str, folder: Path) -> None:
    mistake = next(mistake for mistake in MISTAKES + MISTAKEN_INPUTS if mistake.name == name)
    mistake.change(folder)
    before = contents(folder)
    module, *arguments = shlex.split(mistake.command)
    command = [sys.executable, "-m", f"latentsync_ray.{module}", *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    check_answer(mistake, answer.returncode, answer.stdout, answer.stderr)
    assert contents(folder) == before
