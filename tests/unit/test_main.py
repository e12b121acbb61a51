"""The list of commands, and what their help needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import latentsync_ray
from latentsync_ray.__main__ import COMMANDS, main, parser_of
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


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_one_quick_screen_that_begins_with_an_example(command: str) -> None:
    """Torch and Ray, which take seconds to import, are not imported."""
    script = f"""
import sys
from latentsync_ray.__main__ import main
sys.argv = ["/venv/bin/latentsync-ray", *{command.split()}, "--help"]
try:
    main()
finally:
    print([name for name in ("torch", "ray", "diffusers", "transformers", "pandas") if name in sys.modules])
"""
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    *lines, imported = done.stdout.splitlines()
    assert imported == "[]"
    assert lines[0].startswith(f"latentsync-ray {command}".rstrip() + " ")
    assert [line for line in lines if line.startswith(f"usage: latentsync-ray {command}")]
    assert "\nexit status: " in done.stdout
    assert len(lines) <= 24 and max(map(len, lines)) <= 80


@pytest.mark.parametrize("command", COMMANDS)
def test_the_usage_line_names_what_must_be_given(command: str) -> None:
    parser = parser_of(command)
    usage = parser.usage.split()
    for action in parser._actions:
        if not action.option_strings:
            metavar = action.metavar.split()[0] if isinstance(action.metavar, str) else ""
            assert metavar in usage or f"[{metavar}" in usage
        elif action.required:
            assert action.option_strings[0] in usage
    optional = [
        a for a in parser._actions if a.option_strings and not a.required and a.dest not in ("help", "version")
    ]
    assert ("[options]" in usage) == bool(optional)


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
