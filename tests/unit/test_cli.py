import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from latentsync_ray.cli import run_cli
from latentsync_ray.config.errors import UserError


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
    def main():
        try:
            print("ready", file=sys.stderr)
            time.sleep(60)
        finally:
            print("cleaning", file=sys.stderr)
            time.sleep({seconds})
"""


@pytest.mark.parametrize(("number", "status", "word"), [(2, 130, "interrupted"), (15, 143, "terminated")])
def test_an_interrupt_cleans_up_and_a_second_one_does_not_disturb_that(number: int, status: int, word: str) -> None:
    process = run(CLEANING.format(seconds=1))
    assert process.stderr is not None
    for said in ("ready", "cleaning"):
        assert process.stderr.readline() == f"{said}\n"
        process.send_signal(number)
    assert process.stderr.read() == f"still cleaning up; once more ends it at once\n{word}\n"
    assert process.wait(timeout=60) == status


def test_the_third_interrupt_ends_a_command_at_once_and_quietly() -> None:
    process = run(CLEANING.format(seconds=60))
    assert process.stderr is not None
    for said in ("ready", "cleaning", "still cleaning up; once more ends it at once"):
        assert process.stderr.readline() == f"{said}\n"
        process.send_signal(signal.SIGINT)
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 130
