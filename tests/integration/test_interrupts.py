"""Ctrl-C and its like: what was trained is kept, nothing else is left behind, and the same command goes on."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import results_folder

pytestmark = pytest.mark.slow


@dataclass
class Running:
    """A search as a command of its own, with steps of 0.4 s, of which something is trained already."""

    process: subprocess.Popen[str]
    command: list[str]
    environment: dict[str, str]
    children: list[psutil.Process]
    folder: Path

    @property
    def records(self) -> list[Path]:
        return list((self.folder / "results").glob("segments/*/record.json"))

    def interrupt(self, sent: signal.Signals) -> None:
        """Sends a signal as a terminal does, to all in the foreground, or to the command alone."""
        if sent == signal.SIGTERM:
            self.process.send_signal(sent)
        else:
            os.killpg(self.process.pid, sent)

    def assert_nothing_is_left(self) -> None:
        assert not list((self.folder / "tmp").glob("latentsync_ray-*"))
        _, alive = psutil.wait_procs(self.children, timeout=20)
        assert not alive, [child.name() for child in alive]


@pytest.fixture
def running(make_search: Any, tmp_path: Path) -> Running:
    space = make_search(stage={"first_stage": {"step_seconds": 0.4}, "second_stage": {"step_seconds": 0.4}})
    command = [sys.executable, "-m", "latentsync_ray.tune", str(space), f"storage={tmp_path / 'results'}"]
    (tmp_path / "tmp").mkdir()
    places = {"TMPDIR": str(tmp_path / "tmp"), "RAY_TMPDIR": tempfile.gettempdir()}  # Ray takes short ones only
    environment = {**os.environ, "RAY_ADDRESS": "local", **places}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    made = Running(process, command, environment, [], tmp_path)
    while not made.records and process.poll() is None:
        time.sleep(0.1)
    assert made.records, process.communicate()
    time.sleep(1.5)  # until the command has looked
    made.children = psutil.Process(process.pid).children(recursive=True)
    return made


@pytest.mark.parametrize(
    ("sent", "status", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        # tests/unit/test_cli.py has all three, below Ray.
        pytest.param(signal.SIGTERM, 143, "terminated", marks=pytest.mark.soak),
        pytest.param(signal.SIGHUP, 129, "hung up", marks=pytest.mark.soak),
    ],
)
def test_an_interrupt_keeps_what_was_trained_and_leaves_nothing_else(
    sent: signal.Signals, status: int, word: str, running: Running
) -> None:
    process, started = running.process, time.monotonic()
    running.interrupt(sent)
    assert process.stderr is not None
    line = process.stderr.readline()
    print(f"{sent.name}: answered after {time.monotonic() - started:.2f} s")
    num_steps, again = re.fullmatch(r"stopping: (\d+) steps are kept; go on with: (.*)\n", line).groups()  # type: ignore
    assert shlex.split(again) == running.command
    output, errors = process.communicate(timeout=60)
    assert time.monotonic() - started < 10
    assert process.returncode == status
    assert errors == f"{word}\n"  # nothing of Ray's
    assert "Traceback" not in output
    kept = running.records
    assert 4 <= int(num_steps) <= 4 * len(kept)
    running.assert_nothing_is_left()

    done = subprocess.run(again, shell=True, env=running.environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    folder = results_folder(done.stdout)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps_trained"] == summary["steps_distinct"] - 4 * len(kept)


def test_a_second_interrupt_ends_at_once_and_leaves_nothing(running: Running) -> None:
    running.interrupt(signal.SIGINT)
    assert running.process.stderr is not None
    running.process.stderr.readline()
    time.sleep(0.6)  # longer than one press
    started = time.monotonic()
    running.interrupt(signal.SIGINT)
    running.process.communicate(timeout=60)
    assert time.monotonic() - started < 2
    assert running.process.returncode == 130
    running.assert_nothing_is_left()
