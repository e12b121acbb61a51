"""The list of commands, and what their help needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import latentsync_ray
from latentsync_ray.__main__ import COMMANDS, main
from latentsync_ray.cli import program

PACKAGE = Path(latentsync_ray.__file__).parent


def test_all_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    listed = capsys.readouterr().out
    commands = {"report", "store"}
    commands |= {file.stem.replace("_", "-") for file in PACKAGE.glob("*.py") if "\nrun_cli" in flat(file)}
    assert commands - {"--main--"} == set(COMMANDS)
    for name, summary in COMMANDS.items():
        assert f"\n  {name:13}  {summary}\n" in listed


def flat(file: Path) -> str:
    return file.read_text().replace("    ", "")


def test_another_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["tuna"])
    assert end.value.code == 2
    assert "invalid choice: 'tuna' (choose from " in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_quick_and_says_how_it_was_called(command: str) -> None:
    """Torch and Ray, which take seconds to import, are not imported."""
    script = f"""
import sys
from latentsync_ray.__main__ import main
sys.argv = ["/venv/bin/latentsync-ray", "{command}", "--help"]
try:
    main()
finally:
    print([name for name in ("torch", "ray", "diffusers", "transformers", "pandas") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"usage: latentsync-ray {command} ")
    assert lines[-1] == "[]"


@pytest.mark.parametrize(
    ("argv0", "command", "expected"),
    [
        ("/venv/bin/latentsync-ray", "train-syncnet", "latentsync-ray train-syncnet"),
        ("/venv/bin/latentsync-ray", None, "latentsync-ray"),
        ("/src/latentsync_ray/train_syncnet.py", "train-syncnet", "python -m latentsync_ray.train_syncnet"),
        ("/src/latentsync_ray/store/__main__.py", "store", "python -m latentsync_ray.store"),
        ("/src/latentsync_ray/__main__.py", None, "python -m latentsync_ray"),
    ],
)
def test_program(argv0: str, command: str | None, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [argv0])
    assert program(command) == expected
