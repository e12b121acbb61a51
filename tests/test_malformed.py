"""Users' mistakes, through the real commands: exit status 2, one line that names place and value, and no traces."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from latentsync_ray import preprocess, train, tune
from latentsync_ray.cli import run_cli

ROOT = Path(__file__).resolve().parents[1]
RECIPE, FIRST, SECOND = (f"configs/demo/{name}.yaml" for name in ("recipe", "first_stage", "second_stage"))
SPACE = "search_spaces/transition.yaml"

Change = Callable[[Path], object]


@dataclass(frozen=True)
class Mistake:
    """A command line, what is wrong with the files that it reads, and what the answer has to name."""

    name: str
    command: str
    named: tuple[str, ...]
    change: Change = lambda folder: None


def replace(file: str, old: str, new: str) -> Change:
    def change(folder: Path) -> None:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new, 1))

    return change


def append(file: str, text: str) -> Change:
    return lambda folder: (folder / file).write_text((folder / file).read_text() + text)


def write(file: str, content: bytes | str) -> Change:
    def change(folder: Path) -> None:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def remove(path: str) -> Change:
    return lambda folder: shutil.rmtree(folder / path) if (folder / path).is_dir() else (folder / path).unlink()


def prepared(**values: object) -> Change:
    """An index of prepared clips with these values, and a recipe that names it."""
    return write("data/demo/index.json", json.dumps(values))


TRAIN, TUNE = "train configs/demo", f"tune {SPACE}"
NO_DRAWING = f"{TRAIN} data.synthetic=null"
AT_STEP = "transition.at_step: {grid: [160, 240, 320, 400]}"
LR = "second_stage.optimizer.lr: {grid: [5.0e-5, 2.0e-4, 8.0e-4, 3.2e-3]}"

MISTAKES = [
    # Files
    Mistake("no recipe folder", "train configs/nowhere", ("configs/nowhere", "no such recipe folder")),
    Mistake("no stage file", TRAIN, (SECOND, "no such file"), remove(SECOND)),
    Mistake("stage in the wrong file", TRAIN, (RECIPE, "second_stage", SECOND), append(RECIPE, "second_stage: {}\n")),
    Mistake("invalid YAML", TRAIN, (FIRST, "valid YAML", "line 22"), append(FIRST, "loss: [1, 2\nx: y\n")),
    Mistake("key given twice", TRAIN, (RECIPE, "duplicate key seed"), append(RECIPE, "seed: 1\n")),
    Mistake("list for a mapping", TRAIN, (FIRST, "mapping", "[1, 2]"), write(FIRST, "[1, 2]\n")),
    Mistake("binary file", TRAIN, (SECOND, "cannot be read"), write(SECOND, bytes(range(256)))),
    Mistake("name that is a number", TRAIN, (RECIPE, "names must be text, got 7"), append(RECIPE, "7: 1\n")),
    # Values of a recipe
    Mistake("unknown key", TRAIN, (FIRST, "learning_rate"), append(FIRST, "learning_rate: 1\n")),
    Mistake("unknown nested key", TRAIN, (FIRST, "optimizer.rate"), replace(FIRST, "  lr:", "  rate:")),
    Mistake(
        "missing value", TRAIN, (RECIPE, "data.folder", "missing"), replace(RECIPE, "  folder: ../../data/demo", "")
    ),
    Mistake(
        "wrong type", TRAIN, (FIRST, "batch_size", "'four'"), replace(FIRST, "batch_size: 4", "batch_size: four")
    ),
    Mistake("number for a section", TRAIN, (FIRST, "loss:", "3"), replace(FIRST, "loss: {recon: 1.0}", "loss: 3")),
    Mistake("negative lr", TRAIN, (FIRST, "optimizer.lr", "-0.001"), replace(FIRST, "lr: 1.0e-3", "lr: -1.0e-3")),
    Mistake("lr that is no number", TRAIN, (FIRST, "optimizer.lr", "nan"), replace(FIRST, "lr: 1.0e-3", "lr: .nan")),
    Mistake("zero batch", TRAIN, (FIRST, "batch_size", "got 0"), replace(FIRST, "batch_size: 4", "batch_size: 0")),
    Mistake(
        "uneven shares", TRAIN, (FIRST, "batch_size", "num_workers (3)", "got 4"), append(FIRST, "num_workers: 3\n")
    ),
    Mistake(
        "betas of wrong length",
        TRAIN,
        (FIRST, "optimizer.betas", "[0.9]"),
        replace(FIRST, "  lr:", "  betas: [0.9]\n  lr:"),
    ),
    Mistake("unknown dtype", TRAIN, (FIRST, "dtype", "float16", "bfloat16"), append(FIRST, "dtype: float16\n")),
    Mistake(
        "schedule without end",
        TRAIN,
        (FIRST, "num_training_steps", "cosine"),
        append(FIRST, "lr_scheduler: {name: cosine}\n"),
    ),
    Mistake(
        "step off the boundary",
        TRAIN,
        (RECIPE, "transition.min_step", "170"),
        replace(RECIPE, "min_step: 160", "min_step: 170"),
    ),
    Mistake("at_step above max_step", f"{TRAIN} transition.at_step=420", ("transition.at_step", "(400)", "420")),
    Mistake(
        "patience off the boundary",
        TRAIN,
        (RECIPE, "patience_steps", "got 50", "move it to 40"),
        replace(RECIPE, "patience_steps: 60", "patience_steps: 50"),
    ),
    Mistake(
        "length off the boundary",
        TRAIN,
        (SECOND, "num_steps", "got 45"),
        replace(SECOND, "num_steps: 40", "num_steps: 45"),
    ),
    Mistake(
        "unknown metric of a plateau",
        TRAIN,
        (RECIPE, "transition.plateau.metric", "val/loss"),
        replace(RECIPE, "metric: val/recon", "metric: val/loss"),
    ),
    Mistake(
        "no loss at all",
        TRAIN,
        (FIRST, "loss.recon", "positive", "0.0"),
        replace(FIRST, "{recon: 1.0}", "{recon: 0}"),
    ),
    Mistake("negative weight", TRAIN, (SECOND, "loss.sync", "-0.05"), replace(SECOND, "sync: 0.05", "sync: -0.05")),
    Mistake("negative seed", f"{TRAIN} seed=-1", ("seed", "negative", "-1")),
    Mistake("samples longer than the clips", f"{TRAIN} data.num_frames=101", ("data.num_frames", "(100)", "101")),
    Mistake(
        "loss without its network",
        TRAIN,
        (RECIPE, "components.syncnet", "second_stage.loss.sync"),
        replace(RECIPE, "  syncnet: ../../assets/demo/syncnet\n", ""),
    ),
    # Networks and clips
    Mistake(
        "network that is not there", TRAIN, ("components.lpips", "assets/demo/lpips"), remove("assets/demo/lpips")
    ),
    Mistake(
        "empty folder for a network",
        TRAIN,
        ("components.syncnet", "assets/demo/syncnet"),
        remove("assets/demo/syncnet/config.json"),
    ),
    Mistake(
        "folder that holds no autoencoder",
        TRAIN,
        ("vae", "assets/demo/autoencoder"),
        write("assets/demo/autoencoder/config.json", "{}"),
    ),
    Mistake(
        "weights cut short",
        TRAIN,
        ("vae", "assets/demo/autoencoder"),
        write("assets/demo/autoencoder/diffusion_pytorch_model.safetensors", b"\x10\0\0\0\0\0\0\0{}"),
    ),
    Mistake(
        "unknown option of the UNet",
        TRAIN,
        ("second_stage", "'num_blocks'"),
        replace(SECOND, "  sample_size:", "  num_blocks: 3\n  sample_size:"),
    ),
    Mistake(
        "widths that groups do not divide",
        f"{TRAIN} first_stage.model.norm_num_groups=7",
        ("first_stage", "divisible by num_groups"),
    ),
    Mistake("groups of nothing", f"{TRAIN} first_stage.model.norm_num_groups=0", ("first_stage", "zero")),
    Mistake(
        "nothing to train",
        TRAIN,
        ("second_stage", "trainable_modules", "'attention_layers.'"),
        replace(SECOND, "[motion_modules.,", "[attention_layers.,"),
    ),
    Mistake("unknown training", f"{TRAIN} training=mine:Training", ("training", "mine:Training")),
    Mistake("no clips", NO_DRAWING, ("data/demo", "No such file")),
    Mistake(
        "damaged index",
        NO_DRAWING,
        ("data/demo/index.json", "not JSON"),
        write("data/demo/index.json", '{"format": 1, "clips": [{"na'),
    ),
    Mistake("index of another format", NO_DRAWING, ("data/demo/index.json", "format", "99"), prepared(format=99)),
    # Arguments
    Mistake("no value", f"{TUNE} seed", ("'seed'", "key=value")),
    Mistake(
        "unknown name", f"{TUNE} first_stage.optimizer.learning_rate=1", ("first_stage.optimizer.learning_rate",)
    ),
    Mistake("unknown name in the search", f"{TUNE} workers.num_gpus=1", ("workers.num_gpus",)),
    Mistake("text for a number", f"{TUNE} num_samples=many", ("num_samples", "'many'")),
    Mistake("value that is no YAML", f"{TUNE} 'seed=[1'", ("'seed=[1'", "YAML")),
    # Search spaces
    Mistake("no search space", "tune search_spaces/nowhere.yaml", ("search_spaces/nowhere.yaml", "no such file")),
    Mistake("no recipe named", TUNE, (SPACE, "recipe", "missing"), replace(SPACE, "recipe: ../configs/demo", "")),
    Mistake(
        "unknown parameter",
        TUNE,
        (SPACE, "transition.at_stop"),
        replace(SPACE, "transition.at_step", "transition.at_stop"),
    ),
    Mistake(
        "unknown kind",
        TUNE,
        (SPACE, "param_space.transition.at_step", "'sample'"),
        replace(SPACE, AT_STEP, AT_STEP.replace("grid", "sample")),
    ),
    Mistake(
        "nothing to choose from",
        TUNE,
        (SPACE, "param_space.transition.at_step", "[]"),
        replace(SPACE, "[160, 240, 320, 400]", "[]"),
    ),
    Mistake(
        "reversed range",
        TUNE,
        (SPACE, "param_space.transition.at_step", "[400, 160]"),
        replace(SPACE, AT_STEP, "transition.at_step: {randint: [400, 160]}"),
    ),
    Mistake(
        "range that misses the boundaries",
        TUNE,
        (SPACE, "transition.at_step", "161"),
        replace(SPACE, AT_STEP, "transition.at_step: {randint: [160, 401]}"),
    ),
    Mistake(
        "logarithm of 0",
        TUNE,
        (SPACE, "second_stage.optimizer.lr", "[0, 0.1]"),
        lambda folder: (
            replace(SPACE, f"  {AT_STEP}\n", "")(folder),
            replace(SPACE, LR, "second_stage.optimizer.lr: {loguniform: [0, 0.1]}")(folder),
        ),
    ),
    Mistake(
        "invalid value among others",
        TUNE,
        (SPACE, "transition.at_step", "250"),
        replace(SPACE, "[160, 240,", "[160, 250,"),
    ),
    Mistake(
        "parameter of the data",
        TUNE,
        (SPACE, "param_space.data.num_frames"),
        replace(SPACE, AT_STEP, "data.num_frames: {grid: [8]}"),
    ),
    Mistake(
        "parameter of the networks",
        TUNE,
        (SPACE, "param_space.components.vae"),
        replace(SPACE, AT_STEP, "components.vae: {grid: [a/b]}"),
    ),
    Mistake(
        "unknown metric", TUNE, (SPACE, "metric", "'loss'"), replace(SPACE, "metric: val/objective", "metric: loss")
    ),
    Mistake(
        "unknown scheduler",
        TUNE,
        (SPACE, "trial_scheduler.name", "'median'"),
        replace(SPACE, "name: asha", "name: median"),
    ),
    Mistake("rung that no trial reaches", f"{TUNE} trial_scheduler.grace_period=50", ("grace_period", "(40)", "50")),
    # Storage
    Mistake("file for a storage", f"{TRAIN} storage=LICENSE", ("storage LICENSE", "file"), write("LICENSE", "mine")),
    Mistake(
        "storage below a file",
        f"{TRAIN} storage=LICENSE/runs",
        ("storage LICENSE/runs", "Not a directory"),
        write("LICENSE", "mine"),
    ),
    Mistake("unknown kind of storage", f"{TRAIN} storage=ftp://host/runs", ("storage ftp://host/runs",)),
    # Preparation
    Mistake("no folder of clips", "preprocess clips out --vae v --audio-encoder a", ("clips", "must be a folder")),
    Mistake("folder without clips", "preprocess configs out --vae v --audio-encoder a", ("configs", "no .mp4")),
]

IN_OWN_PROCESS = ["binary file", "unknown name", "unknown kind", "file for a storage", "folder without clips"]


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
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert err.startswith("error: ")
    for name in mistake.named:
        assert name in err


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_is_one_clear_line_and_leaves_no_trace(
    mistake: Mistake, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def too_late(*args: object, **kwargs: object) -> None:
        raise AssertionError("the mistake was not found before Ray was started")

    monkeypatch.setattr("ray.init", too_late)
    mistake.change(folder)
    before = contents(folder)
    command, *arguments = shlex.split(mistake.command)
    monkeypatch.setattr(sys, "argv", [command, *arguments])
    with pytest.raises(SystemExit) as end:
        run_cli({"train": train, "tune": tune, "preprocess": preprocess}[command].main)
    check_answer(mistake, end.value.code, *capfd.readouterr())
    assert contents(folder) == before


@pytest.mark.slow  # each process imports torch and Ray before it looks at its arguments
@pytest.mark.parametrize("name", IN_OWN_PROCESS)
def test_so_it_is_in_a_process_of_its_own(name: str, folder: Path) -> None:
    mistake = next(mistake for mistake in MISTAKES if mistake.name == name)
    mistake.change(folder)
    before = contents(folder)
    module, *arguments = shlex.split(mistake.command)
    command = [sys.executable, "-m", f"latentsync_ray.{module}", *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    check_answer(mistake, answer.returncode, answer.stdout, answer.stderr)
    assert contents(folder) == before
