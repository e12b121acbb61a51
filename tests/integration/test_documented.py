"""The commands of README and docs, run as they are typed, in a working folder whose searches are short."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from documented import PAGES, all_commands, blocks, entry
from helpers import Outcome, results_folder

from latentsync_ray.latentsync.data.media import write_clip
from latentsync_ray.latentsync.data.synthetic import synthetic_clips

pytestmark = [pytest.mark.slow, pytest.mark.soak]
SPACE = "search_spaces/transition.yaml"
STEPS = {
    *("at_step", "min_step", "max_step", "patience_steps", "num_steps", "report_every_steps", "steps", "cost"),
    *("grace_period", "second_stage_grace", "perturbation_interval"),
}
"""Numbers of steps: a tenth of them keeps the boundaries where they are."""


class Shell:
    """A folder in which commands are typed, with `latentsync-ray` on the path."""

    def __init__(self, folder: Path, address: str):
        self.place, self.names = folder, dict[str, str]()
        program = folder / "bin" / "latentsync-ray"
        program.parent.mkdir()
        program.write_text(f"#!{sys.executable}\nfrom latentsync_ray.__main__ import run\nrun()\n")
        program.chmod(0o755)
        path = f"{program.parent}:{os.environ['PATH']}"
        self._environment = {**os.environ, "PATH": path, "RAY_ADDRESS": address}

    def run(self, *words: str) -> str:
        """What a command prints; names in capitals stand for what is there."""
        typed = [self._meant(word) for word in words]
        print("$", *typed, flush=True)
        done = subprocess.run(
            typed, cwd=self.place, env=self._environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _meant(self, word: str) -> str:
        for name, value in self.names.items():
            word = word.replace(name, value)
        return word


@pytest.fixture(scope="module")
def shell(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """After `init` and the first search."""
    import ray

    made = Shell(tmp_path_factory.mktemp("typed"), ray.get_runtime_context().gcs_address)
    made.run("latentsync-ray", "init", "demo")
    made.place = folder = made.place / "demo"
    shorten(folder)
    results = results_folder(made.run("latentsync-ray", "tune", SPACE))
    (clip,) = (clip for clip in synthetic_clips(2, 1, 40, 64, 0) if clip.name == "speaker1/00")
    write_clip(folder / "clip.mp4", clip)
    records = Outcome(results, folder / "results", 0).records.values()
    trunk = [
        record["key"] for record in records if record["segment"]["stage"] == "first_stage" and record["state"]["kept"]
    ]
    made.names = {
        "FOLDER": str(results),
        "SPACE": SPACE,
        "RECIPE": "configs/demo",
        "KEY": trunk[0][:12],
        "/data/results": str(folder / "elsewhere"),
        "/shared/results": str(folder / "shared"),
        "results/searches/transition-1a2b3c4d": str(results),
    }
    return made


def shorten(folder: Path) -> None:
    """A tenth of the steps, on two short clips."""
    for file in [*folder.glob("search_spaces/*.yaml"), *folder.glob("configs/demo/*_stage.yaml")]:
        file.write_text(yaml.safe_dump(a_tenth(yaml.safe_load(file.read_text())), sort_keys=False))
    file = folder / "configs" / "demo" / "recipe.yaml"
    recipe = a_tenth(yaml.safe_load(file.read_text()))
    recipe["data"]["synthetic"] |= {"num_speakers": 2, "clips_per_speaker": 1, "num_frames": 40}
    recipe["data"]["synthetic"]["num_validation_speakers"] = 1
    recipe["validation"] |= {"num_samples": 2, "timesteps": [400]}
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))


def a_tenth(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {inner: a_tenth(item, name if inner in ("grid", "choice") else inner) for inner, item in value.items()}
    if isinstance(value, list):
        return [a_tenth(item, name) for item in value]
    return value // 10 if name.rpartition(".")[2] in STEPS and isinstance(value, int) else value


TYPED = list(dict.fromkeys(command.words for command in all_commands() if entry(command) is None))


@pytest.mark.parametrize(
    "words", [words for words in TYPED if words[0] == "latentsync-ray" and words[1] != "init"], ids=" ".join
)
def test_a_command(shell: Shell, words: tuple[str, ...]) -> None:
    for name in ("unet.pt", "out.mp4"):
        (shell.place / name).unlink(missing_ok=True)
    if len(words) == 2 and words[1] != "--help":  # a command that is only mentioned
        words = (*words, "--help")
    assert shell.run(*words)


def test_python(shell: Shell) -> None:
    code = "\n".join(block for page in PAGES for block in blocks(page, "python"))
    assert shell.run(sys.executable, "-c", code)
