import os
import pty
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from latentsync_ray.cli import going_on, run_cli
from latentsync_ray.config.errors import UserError


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """A command keeps its own to the end of its process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("main", "status", "said"),
    [
        (lambda: None, 0, ""),
        (lambda: 3, 3, ""),
        (
            lambda: fail(UserError("a.yaml: lr must be positive,\nis -1")),
            2,
            "error: a.yaml: lr must be positive, is -1\n",
        ),
        (lambda: fail(KeyboardInterrupt()), 130, "interrupted\n"),
    ],
)
def test_a_command_ends_as_it_should(main, status: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run_cli(main)
    assert end.value.code == status
    assert capsys.readouterr() == ("", said)


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_cli(lambda: 1 // 0)


def run(code: str, **options: object) -> subprocess.Popen[str]:
    """A command of its own process, which says `ready` on standard error when it is."""
    head = "import sys, time\nfrom latentsync_ray.cli import run_cli\n"
    text = f"{head}{textwrap.dedent(code)}\nrun_cli(main)"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", text], **{**pipes, **options})  # type: ignore[call-overload]


def test_a_closed_pipe_ends_printing_and_nothing_else(tmp_path: Path) -> None:
    process = run(
        f"""
        def main():
            print("first", flush=True)
            sys.stdin.read()
            for number in range(1000):
                print(number, flush=True)
                print(number, file=sys.stderr)
            open({str(tmp_path / "done")!r}, "w")
            return 3
        """,
        stdin=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None and process.stdin is not None
    assert process.stdout.readline() == "first\n"
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read() == "".join(f"{number}\n" for number in range(1000))
    assert process.wait(timeout=60) == 3 and (tmp_path / "done").exists()


CLEANING = """
    import os, subprocess
    from latentsync_ray.cli import going_on, when_interrupted

    def main():
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        say = lambda: os.write(2, f"stopping: {{going_on()}}\\n".encode())
        try:
            with when_interrupted(say, lambda: open({mark!r}, "w")):
                print("ready", child.pid, file=sys.stderr)
                time.sleep(60)
        finally:
            print("cleaning", file=sys.stderr)
            time.sleep({seconds})
            child.kill()
"""


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated"), (signal.SIGHUP, 129, "hung up")],
)
def test_an_interrupt_is_answered_then_cleans_up(number: int, status: int, word: str, tmp_path: Path) -> None:
    """One that comes twice at once, as `timeout` sends it, is one."""
    process = run(CLEANING.format(seconds=0.2, mark=str(tmp_path / "mark")))
    assert process.stderr is not None
    assert process.stderr.readline().startswith("ready")
    process.send_signal(number)
    process.send_signal(number)
    line = process.stderr.readline()
    assert line.startswith(f"stopping: {shlex.quote(sys.executable)} -c ")
    assert process.stderr.read().endswith(f"\ncleaning\n{word}\n")
    assert process.wait(timeout=60) == status and not (tmp_path / "mark").exists()


def test_a_second_interrupt_ends_a_command_at_once_with_its_children(tmp_path: Path) -> None:
    process = run(CLEANING.format(seconds=60, mark=str(tmp_path / "mark")))
    assert process.stderr is not None
    child = psutil.Process(int(process.stderr.readline().split()[1]))
    process.send_signal(signal.SIGINT)
    while process.stderr.readline() != "cleaning\n":
        pass
    time.sleep(0.6)  # longer than one press
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 130 and time.monotonic() - started < 5
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_nohup_is_respected() -> None:
    process = run(
        CLEANING.format(seconds=0, mark=""), preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("ready")
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.terminate()
    process.stderr.read()
    assert process.wait(timeout=60) == 143


def test_a_closed_terminal_ends_printing_and_nothing_else(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = run(
        f"""
        def main():
            sys.stdin.read()
            for number in range(1000):
                print(number, flush=True)
            open({str(tmp_path / "done")!r}, "w")
            return 3
        """,
        stdin=subprocess.PIPE,
        stdout=theirs,
    )
    os.close(theirs)
    os.close(ours)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=60) == 3 and (tmp_path / "done").exists()


@pytest.mark.parametrize(
    ("argv", "orig_argv", "said"),
    [
        (["/b/latentsync-ray", "tune", "a b.yaml"], [], "/b/latentsync-ray tune 'a b.yaml'"),
        (["/x/tune.py"], ["python", "-m", "latentsync_ray.tune", "s.yaml"], "python -m latentsync_ray.tune s.yaml"),
    ],
)
def test_the_command_to_go_on_is_the_one_that_was_typed(
    argv: list[str], orig_argv: list[str], said: str, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", orig_argv)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert going_on() == "the same call"  # this process runs no command
    with pytest.raises(SystemExit):
        run_cli(lambda: print(going_on()))
    assert capsys.readouterr().out == f"{said}\n"
