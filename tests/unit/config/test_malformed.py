"""Users' mistakes, through the real commands: exit status 2, one line that names place and value, and no traces."""

from __future__ import annotations

import logging
import math
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from latentsync_ray import preprocess, train, train_syncnet, tune
from latentsync_ray.cli import run_cli

ROOT = Path(__file__).resolve().parents[3]
RECIPE, FIRST, SECOND = (f"configs/demo/{name}.yaml" for name in ("recipe", "first_stage", "second_stage"))
SPACE = "search_spaces/transition.yaml"
SYNCNET = "configs/demo/syncnet.yaml"

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


TRAIN, TUNE = "train configs/demo", f"tune {SPACE}"
TRAIN_SYNCNET = f"train_syncnet {SYNCNET}"
NO_DRAWING = f"{TRAIN} data.synthetic=null"
VAE, LPIPS = "assets/demo/autoencoder", "assets/demo/lpips"
INDEX = "data/demo/index.json"
AT_STEP, LR = "transition.at_step", "second_stage.optimizer.lr"
BOUNDARY = "report_every_steps"
NUM_STEPS, EVERY = "second_stage.num_steps", "second_stage.report_every_steps"
SECRET = "${oc.env:HOME}"

# 77 and 99991 are multiples of no interval between reports that anybody would choose.
MISTAKES = [
    # Files
    Mistake("no recipe folder", "train configs/nowhere", ("configs/nowhere", "no such recipe folder")),
    Mistake("no stage file", TRAIN, (SECOND, "no such file"), remove(SECOND)),
    Mistake("stage in the wrong file", TRAIN, (RECIPE, "second_stage", SECOND), append(RECIPE, "second_stage: {}\n")),
    Mistake("invalid YAML", TRAIN, (FIRST, "valid YAML", "line 3"), write(FIRST, "a: 1\nloss: [1, 2\nx: y\n")),
    Mistake("key given twice", TRAIN, (RECIPE, "duplicate key seed"), append(RECIPE, "seed: 1\n")),
    Mistake("list for a mapping", TRAIN, (FIRST, "mapping", "[1, 2]"), write(FIRST, "[1, 2]\n")),
    Mistake("binary file", TRAIN, (SECOND, "cannot be read"), write(SECOND, bytes(range(256)))),
    Mistake(
        "object for a value", TRAIN, (RECIPE, "valid YAML"), append(RECIPE, "training: !!python/name:os.system\n")
    ),
    Mistake("bytes for a value", TRAIN, (RECIPE, "text or numbers"), append(RECIPE, "training: !!binary aGk=\n")),
    Mistake("list in itself", TRAIN, (RECIPE, "in itself"), append(RECIPE, "training: &a [*a]\n")),
    Mistake("name that is a number", TRAIN, (RECIPE, "names must be text, got 7"), append(RECIPE, "7: 1\n")),
    # Values of a recipe
    Mistake("unknown key", TRAIN, (FIRST, "learning_rate"), put(FIRST, "learning_rate", value=1)),
    Mistake("unknown nested key", TRAIN, (FIRST, "optimizer.rate"), put(FIRST, "optimizer", "rate", value=1)),
    Mistake("missing value", TRAIN, (RECIPE, "data.folder", "missing"), put(RECIPE, "data", "folder", value=None)),
    Mistake("wrong type", TRAIN, (FIRST, "batch_size", "'four'"), put(FIRST, "batch_size", value="four")),
    Mistake("number for a section", TRAIN, (FIRST, "loss:", "3"), put(FIRST, "loss", value=3)),
    Mistake("negative lr", TRAIN, (FIRST, "optimizer.lr", "-0.5"), put(FIRST, "optimizer", "lr", value=-0.5)),
    Mistake(
        "lr that is no number", TRAIN, (FIRST, "optimizer.lr", "nan"), put(FIRST, "optimizer", "lr", value=math.nan)
    ),
    Mistake("zero batch", TRAIN, (FIRST, "batch_size", "got 0"), put(FIRST, "batch_size", value=0)),
    Mistake(
        "uneven shares", TRAIN, (FIRST, "batch_size", "num_workers (99991)"), put(FIRST, "num_workers", value=99991)
    ),
    Mistake(
        "betas of wrong length",
        TRAIN,
        (FIRST, "optimizer.betas", "[0.9]"),
        put(FIRST, "optimizer", "betas", value=[0.9]),
    ),
    Mistake("unknown dtype", TRAIN, (FIRST, "dtype", "float16", "bfloat16"), put(FIRST, "dtype", value="float8")),
    Mistake(
        "schedule without end",
        TRAIN,
        (FIRST, "num_training_steps", "cosine"),
        put(FIRST, "lr_scheduler", value={"name": "cosine"}),
    ),
    Mistake(
        "bound off the boundary",
        TRAIN,
        (RECIPE, "transition.min_step", BOUNDARY, "77"),
        put(RECIPE, "transition", "min_step", value=77),
    ),
    Mistake(
        "at_step above max_step", f"{TRAIN} transition.at_step=99991", ("transition.at_step", "max_step", "99991")
    ),
    Mistake(
        "patience off the boundary",
        TRAIN,
        (RECIPE, "plateau.patience_steps", BOUNDARY, "77"),
        put(RECIPE, "transition", "plateau", "patience_steps", value=77),
    ),
    Mistake(
        "length off the boundary", TRAIN, (SECOND, "num_steps", BOUNDARY, "77"), put(SECOND, "num_steps", value=77)
    ),
    Mistake(
        "unknown metric of a plateau",
        TRAIN,
        (RECIPE, "plateau.metric", "val/loss"),
        put(RECIPE, "transition", "plateau", "metric", value="val/loss"),
    ),
    Mistake(
        "no loss at all", TRAIN, (FIRST, "loss.recon", "positive", "0.0"), put(FIRST, "loss", value={"recon": 0})
    ),
    Mistake("negative weight", TRAIN, (SECOND, "loss.sync", "-0.05"), put(SECOND, "loss", "sync", value=-0.05)),
    Mistake("negative seed", f"{TRAIN} seed=-1", ("seed", "negative", "-1")),
    Mistake(
        "samples longer than the clips", f"{TRAIN} data.num_frames=99991", ("data.num_frames", "synthetic", "99991")
    ),
    Mistake(
        "loss without its network",
        TRAIN,
        (RECIPE, "components.syncnet", "loss.sync"),
        put(RECIPE, "components", "syncnet", value=None),
    ),
    # Arguments
    Mistake("no value", f"{TUNE} seed", ("'seed'", "key=value")),
    Mistake(
        "unknown name", f"{TUNE} first_stage.optimizer.learning_rate=1", ("first_stage.optimizer.learning_rate",)
    ),
    Mistake("unknown name in the search", f"{TUNE} workers.num_gpus=1", ("workers.num_gpus",)),
    Mistake("text for a number", f"{TUNE} num_samples=many", ("num_samples", "'many'")),
    Mistake("value that is no YAML", f"{TUNE} 'seed=[1'", ("'seed=[1'", "YAML")),
    Mistake("date for a number", f"{TUNE} seed=2024-01-01", ("argument: seed", "'2024-01-01'")),
    Mistake("samples of a training", f"{TRAIN} num_samples=3", ("'num_samples=3'", "train", "the command tune")),
    Mistake("space of a training", f"{TRAIN} 'param_space.seed={{grid: [1]}}'", ("param_space.seed", "train")),
    Mistake("scheduler of a training", f"{TRAIN} trial_scheduler.name=asha", ("trial_scheduler.name", "train")),
    # What would be looked up elsewhere
    Mistake("lookup in a recipe", TRAIN, (RECIPE, "seed", SECRET), put(RECIPE, "seed", value=SECRET)),
    Mistake(
        "lookup deep in a stage", TRAIN, (FIRST, "model.a", SECRET), put(FIRST, "model", value={"a": [[SECRET]]})
    ),
    Mistake("lookup in a search", TUNE, (SPACE, "name", SECRET), put(SPACE, "name", value=SECRET)),
    Mistake("lookup in a space", TUNE, (SPACE, f"param_space.{LR}.grid", SECRET), space(LR, {"grid": [SECRET]})),
    Mistake(
        "lookup in an override",
        TUNE,
        (SPACE, "overrides.training", SECRET),
        put(SPACE, "overrides", "training", value=SECRET),
    ),
    Mistake("lookup in an argument", f"{TUNE} 'storage=a/{SECRET}'", ("storage", SECRET)),
    Mistake("lookup in a value of the recipe", f"{TUNE} 'components.vae={SECRET}'", ("components.vae", SECRET)),
    Mistake("lookup in a mapping", f"{TUNE} 'workers={{max_groups: {SECRET!r}}}'", ("workers", SECRET)),
    Mistake("lookup in a folder", f"train '{SECRET}'", (SECRET,), write(f"{SECRET}/recipe.yaml", "seed: 1")),
    Mistake("lookup for a SyncNet", f"{TRAIN_SYNCNET} 'output={SECRET}'", ("output", SECRET)),
    # Search spaces
    Mistake("no search space", "tune search_spaces/nowhere.yaml", ("search_spaces/nowhere.yaml", "no such file")),
    Mistake("no recipe named", TUNE, (SPACE, "recipe", "missing"), put(SPACE, "recipe", value=None)),
    Mistake("parameters in a list", TUNE, (SPACE, "param_space", "[1, 2]"), put(SPACE, "param_space", value=[1, 2])),
    Mistake("unknown parameter", TUNE, (SPACE, "transition.at_stop"), space("transition.at_stop", {"grid": [1]})),
    Mistake("unknown kind", TUNE, (SPACE, f"param_space.{AT_STEP}", "'sample'"), space(AT_STEP, {"sample": [1]})),
    Mistake("nothing to choose from", TUNE, (SPACE, f"param_space.{AT_STEP}", "[]"), space(AT_STEP, {"grid": []})),
    Mistake("reversed range", TUNE, (SPACE, f"param_space.{LR}", "[2, 1]"), space(LR, {"uniform": [2, 1]})),
    Mistake("logarithm of 0", TUNE, (SPACE, f"param_space.{LR}", "[0, 0.1]"), space(LR, {"loguniform": [0, 0.1]})),
    Mistake(
        "fractions of a step",
        TUNE,
        (SPACE, "num_warmup_steps"),
        space("second_stage.lr_scheduler.num_warmup_steps", {"uniform": [0, 10]}),
    ),
    Mistake("invalid value among others", TUNE, (SPACE, LR, "-1"), space(LR, {"choice": [0.1, -1]})),
    Mistake(
        "seed of a population",
        f"{TUNE} trial_scheduler.name=pbt",
        (SPACE, "param_space.seed", "pbt"),
        space("seed", {"choice": [0, 1]}),
    ),
    Mistake(
        "parameter of the data", TUNE, (SPACE, "param_space.data.num_frames"), space("data.num_frames", {"grid": [8]})
    ),
    Mistake(
        "parameter of the networks",
        TUNE,
        (SPACE, "param_space.components.vae"),
        space("components.vae", {"grid": ["a/b"]}),
    ),
    Mistake("unknown metric", TUNE, (SPACE, "metric", "'loss'"), put(SPACE, "metric", value="loss")),
    Mistake(
        "unknown scheduler",
        TUNE,
        (SPACE, "trial_scheduler.name", "'median'"),
        put(SPACE, "trial_scheduler", value={"name": "median"}),
    ),
    Mistake(
        "values that do not go together",
        TUNE,
        (SPACE, "second_stage.num_steps", BOUNDARY, "(20)", "got 10"),
        put(SPACE, "param_space", value={NUM_STEPS: {"grid": [20, 10]}, EVERY: {"grid": [10, 20]}}),
    ),
    Mistake(
        "value that goes with no other",
        TUNE,
        (SPACE, "second_stage.num_steps", "got 77"),
        put(SPACE, "param_space", value={NUM_STEPS: {"choice": [20, 77]}, EVERY: {"choice": [10, 20]}}),
    ),
    Mistake(
        "parameter within another",
        TUNE,
        (SPACE, "param_space.transition.plateau.patience_steps", "(transition.plateau)"),
        put(
            SPACE,
            "param_space",
            value={"transition.plateau": {"grid": [None]}, "transition.plateau.patience_steps": {"grid": [40]}},
        ),
    ),
    Mistake("nothing for optuna", f"{TUNE} search_alg=optuna param_space={{}}", (SPACE, "search_alg", "param_space")),
    Mistake("very long name", f"{TUNE} name={'x' * 300}", ("name", "200", "x" * 300)),
    Mistake(
        "recipe in a home that holds none", TUNE, ("nowhere", "no such"), put(SPACE, "recipe", value="~/nowhere")
    ),
    Mistake(
        "home of nobody",
        TUNE,
        (SPACE, "recipe", "'~nobody-at-all/x'"),
        put(SPACE, "recipe", value="~nobody-at-all/x"),
    ),
    Mistake(
        "argument that fixes what is searched",
        f"{TUNE} 'transition={{at_step: 400}}'",
        ("argument transition.at_step", f"param_space.{AT_STEP}"),
    ),
    Mistake(
        "override that fixes what is searched",
        TUNE,
        (SPACE, "overrides second_stage.optimizer", f"param_space.{LR}"),
        put(SPACE, "overrides", "second_stage.optimizer", value={"lr": 0.1}),
    ),
    Mistake("rung that no trial reaches", f"{TUNE} trial_scheduler.grace_period=99991", ("grace_period", "99991")),
    # Storage
    Mistake("file for a storage", f"{TRAIN} storage=LICENSE", ("storage LICENSE", "file"), write("LICENSE", "mine")),
    Mistake(
        "storage below a file",
        f"{TRAIN} storage=LICENSE/runs",
        ("storage LICENSE/runs", "Not a directory"),
        write("LICENSE", "mine"),
    ),
    Mistake("storage of nobody", f"{TRAIN} storage=~nobody-at-all/x", ("storage ~nobody-at-all/x",)),
    Mistake("unknown kind of storage", f"{TRAIN} storage=ftp://host/runs", ("storage ftp://host/runs",)),
    Mistake("nobody's home", "train configs/demo data.folder=~nobody1/x", ("data.folder", "~nobody1/x")),
    # A SyncNet
    Mistake("no file of settings", "train_syncnet configs/nowhere.yaml", ("configs/nowhere.yaml", "no such file")),
    Mistake(
        "unknown setting",
        TRAIN_SYNCNET,
        (SYNCNET, "'rate'", "syncnet/config.py"),
        append(SYNCNET, "rate: 1\n"),
    ),
    Mistake("uneven groups of windows", f"{TRAIN_SYNCNET} batch_size=99991", ("batch_size", "99991")),
    Mistake("no other place to compare", f"{TRAIN_SYNCNET} windows_per_clip=1", ("windows_per_clip", "got 1")),
    Mistake("odd height", f"{TRAIN_SYNCNET} resolution=77", ("resolution", "got 77")),
    Mistake("drawn clips without an encoder", f"{TRAIN_SYNCNET} audio_encoder=null", ("audio_encoder", "synthetic")),
    Mistake("autoencoder that is not there", f"{TRAIN_SYNCNET} vae=./nowhere", ("vae", "nowhere")),
    Mistake(
        "windows of another length",
        f"{TRAIN_SYNCNET} data.num_frames=9",
        ("visual_encoder.in_channels", "(27)", "got 24"),
    ),
    Mistake("half a network", f"{TRAIN_SYNCNET}", ("model", "audio_encoder"), put(SYNCNET, "model", value={})),
    Mistake("unknown part of the network", f"{TRAIN_SYNCNET} model.text_encoder={{}}", ("model", "'text_encoder'")),
    Mistake(
        "no clips for SyncNet",
        f"{TRAIN_SYNCNET} data.synthetic=null data.folder=data/demo",
        (INDEX, "No such file"),
    ),
    # Preparation
    Mistake("no folder of clips", "preprocess clips out --vae v --audio-encoder a", ("clips", "must be a folder")),
    Mistake("folder without clips", "preprocess configs out --vae v --audio-encoder a", ("configs", "no .mp4")),
]

# Networks and clips: these take libraries that are loaded after Ray has told whether the cluster can hold the search.
MISTAKEN_INPUTS = [
    Mistake("network that is not there", TRAIN, ("components.lpips", LPIPS), remove(LPIPS)),
    Mistake("empty folder for a network", TRAIN, ("components.lpips", LPIPS), remove(f"{LPIPS}/config.json")),
    Mistake("folder that holds no autoencoder", TRAIN, ("vae", VAE), write(f"{VAE}/config.json", "{}")),
    Mistake(
        "weights cut short", TRAIN, ("vae", VAE), write(f"{VAE}/diffusion_pytorch_model.safetensors", b"\x10\0\0")
    ),
    Mistake(
        "unknown option of the UNet",
        TRAIN,
        ("second_stage", "'num_blocks'"),
        put(SECOND, "model", "num_blocks", value=3),
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
        put(SECOND, "trainable_modules", value=["attention_layers."]),
    ),
    Mistake("unknown training", f"{TRAIN} training=mine:Training", ("training", "mine:Training")),
    Mistake("no clips", NO_DRAWING, (INDEX, "No such file")),
    Mistake("damaged index", NO_DRAWING, (INDEX, "not JSON"), write(INDEX, '{"format": 2, "clips": [{"na')),
    Mistake("index of another format", NO_DRAWING, (INDEX, "format", "99"), write(INDEX, '{"format": 99}')),
]

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
    assert out == ""
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
