"""The package as it is published: the wheel, made from the sdist, in an empty environment and folder."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
import yaml

pytestmark = [pytest.mark.slow, pytest.mark.soak]
ROOT = Path(__file__).resolve().parents[2]
PIP = [sys.executable, "-m", "pip"]


def value_of(argument: str) -> tuple[str, object]:
    """Name and value of an argument of a command."""
    name, _, text = argument.partition("=")
    return name, yaml.safe_load(text)


SMALL = [
    "data.synthetic.num_speakers=2",
    "data.synthetic.clips_per_speaker=1",
    "data.synthetic.num_frames=40",
    "validation.num_samples=2",
    "transition.min_step=4",
    "first_stage.report_every_steps=4",
    "second_stage.report_every_steps=4",
    "second_stage.num_steps=4",
    "param_space.transition.at_step={grid: [4, 8]}",
    "param_space.second_stage.optimizer.lr={grid: [1.0e-4]}",
    "trial_scheduler.name=fifo",
    "workers.max_groups=1",
]
FIVE_LINES = f"""\
import latentsync_ray
search = latentsync_ray.load_search("search_spaces/transition.yaml", {dict(map(value_of, SMALL))})
results = search.run()
best = results.get_best_result()
print(best.number, best.transition_step, len(results.get_dataframe()))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Needs the build backend, which pip gets from the package index."""
    folder = tmp_path_factory.mktemp("build")
    (backend,) = project()["build-system"]["requires"]
    run([*PIP, "install", "-q", "--target", folder / "backend", backend], folder)
    run(
        [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder], ROOT, PYTHONPATH=folder / "backend"
    )
    (sdist,) = folder.glob("*.tar.gz")
    run([*PIP, "wheel", "-q", "--no-deps", "-w", folder, sdist], folder)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of an environment with the wheel. The packages that it needs are those of this environment."""
    folder = tmp_path_factory.mktemp("installed") / "env"
    venv.create(folder)
    run([*PIP, "--python", folder / "bin" / "python", "install", "-q", "--no-deps", wheel], folder)
    # Of a folder that a .pth file names, the .pth files are not read: this checkout, if one names it, stays unknown.
    (own,) = folder.glob("lib/python*/site-packages")
    (own / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    return folder / "bin"


@pytest.mark.timeout(1200)
def test_the_demo_runs_from_the_wheel(environment: Path, tmp_path: Path) -> None:
    python = environment / "python"
    where = run([python, "-c", "import latentsync_ray as p; print(p.__version__, p.__file__)"], tmp_path).split()
    assert where[0] == project()["project"]["version"]
    assert Path(where[1]).is_relative_to(environment.parent)

    assert "\n  tune " in run([environment / "latentsync-ray"], tmp_path)
    run([environment / "latentsync-ray", "init", "demo"], tmp_path)
    command = [environment / "latentsync-ray", "tune", "search_spaces/transition.yaml", *SMALL]
    output = run(command, tmp_path / "demo")
    (results,) = [line.removeprefix("results: ") for line in output.splitlines() if line.startswith("results: ")]
    assert Path(results).is_relative_to(tmp_path / "demo" / "results")
    with (Path(results) / "trials.csv").open() as stream:
        trials = list(csv.DictReader(stream))
    assert [(trial["transition_step"], trial["global_step"]) for trial in trials] == [("4", "8"), ("8", "12")]

    (tmp_path / "demo" / "five_lines.py").write_text(FIVE_LINES)
    *said, answer = run([python, "five_lines.py"], tmp_path / "demo").splitlines()
    assert any(line.startswith("this search is finished") for line in said)
    best = min(trials, key=lambda trial: float(trial["val/objective"]))
    assert answer.split() == [best["trial"], best["transition_step"], "2"]


def project() -> dict[str, dict]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def run(command: list[object], folder: Path, **variables: object) -> str:
    """Runs a command as in a new shell, on a cluster of its own. Returns its standard output."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment = inherited | {"RAY_ADDRESS": "local"} | {name: str(value) for name, value in variables.items()}
    done = subprocess.run(list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
