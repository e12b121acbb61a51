"""What fails for a passing reason is tried again, for a bounded time; everything else is said at once."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path

import pytest
import torch
from records import make_segment, make_trained

from latentsync_ray.store import StorageError, Store
from latentsync_ray.store.patience import Patience


class Storage:
    """Fails until a moment; its clock stands still but for the pauses of those who wait."""

    def __init__(self, number: int, until: float):
        self.now, self.pauses, self.said = 0.0, list[float](), list[str]()
        self._number, self._until = number, until

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def operation(self) -> str:
        if self.now < self._until:
            raise OSError(self._number, "it fails")
        return "content"

    def patience(self, seconds: float) -> Patience:
        return Patience(seconds, self.said.append, lambda: self.now, self.sleep)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ECONNREFUSED, errno.ETIMEDOUT])
def test_a_passing_failure_passes(number: int) -> None:
    storage = Storage(number, until=100)
    assert storage.patience(300).attempt("file", storage.operation, "read") == "content"
    assert storage.pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert storage.said == ["storage file: cannot be read (it fails); this is tried again for 5 minutes"]


def test_patience_ends() -> None:
    storage = Storage(errno.EIO, until=1e9)
    with pytest.raises(StorageError, match=r"^storage file: cannot be written \(it fails\); make room or mend it"):
        storage.patience(60).attempt("file", storage.operation)
    assert 60 <= storage.now < 60 + 30


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG])
def test_what_does_not_pass_is_said_at_once(number: int) -> None:
    storage = Storage(number, until=1)
    with pytest.raises(StorageError):
        storage.patience(300).attempt("file", storage.operation)
    assert storage.pauses == [] and storage.said == []


def test_an_object_store_that_is_busy_is_asked_again() -> None:
    storage = Storage(0, until=1)

    def busy() -> str:
        if storage.now < 1:
            raise OSError("When getting information: AWS Error SLOW_DOWN during HeadObject operation")
        return "content"

    assert storage.patience(300).attempt("file", busy) == "content"


def test_a_state_is_written_whole_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server of a network filesystem is away as a file is to get its name, twice."""
    failures, rename = [errno.EIO, errno.ESTALE], Path.replace
    storage = Storage(0, until=0)
    store, segment = Store(str(tmp_path), storage.patience(300)), make_segment()

    def replace(path: Path, target: Path) -> Path:
        if failures:
            raise OSError(failures.pop(), "it fails")
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    record = store.publish(make_trained(segment), {"model.weight": torch.ones(3)})
    assert storage.pauses == [0.5, 1] and len(storage.said) == 1
    assert store.read_record(segment.key) == record
    assert store.read_state(segment.key, record.state.sha256)["model.weight"].tolist() == [1, 1, 1]
    assert sorted(path.name for path in (tmp_path / "segments" / segment.key).iterdir()) == [
        "record.json",
        "state.safetensors",
    ]


def test_a_full_folder_for_temporary_files_is_not_the_storages_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States on their way to an object store; the process that cannot write them ends, and another node tries."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError) as error:
        Store("mock:///store").publish(make_trained(make_segment()), {"model.weight": torch.ones(3)})
    assert not isinstance(error.value, StorageError)


def test_ray_tune_can_write_it_down_after_print_was_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray does that while a progress bar is shown, and Ray Tune writes what its callbacks hold."""
    monkeypatch.setattr("builtins.print", lambda *values: None)
    assert pickle.loads(pickle.dumps(Patience())) == Patience()
