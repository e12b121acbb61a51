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
