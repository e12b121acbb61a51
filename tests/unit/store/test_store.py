"""What is published comes back bit for bit; what is damaged, half-written or gone is never taken for whole."""

import json
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from records import make_segment, make_trained

from latentsync_ray.config.errors import UserError
from latentsync_ray.store import DamagedEntryError, StorageError, Store, weights_sha256

SEGMENT = make_segment()
KEY = SEGMENT.key
TRAINED = make_trained(SEGMENT, {"val/recon": 0.1, "train/loss": 1e-300}, [{"loss": 0.3}])


def make_state() -> dict[str, torch.Tensor]:
    return {
        "model.weight": torch.tensor([[1.0, -0.0], [float("inf"), 1e-45]]),
        "model.half": torch.tensor([1.5, -2.25], dtype=torch.bfloat16),
        "model.empty": torch.zeros(0, 3),
        "optimizer.weight.step": torch.tensor(7.0),
        "optimizer.weight.exp_avg": torch.linspace(-1, 1, 100, dtype=torch.float64),
        "model.counts": torch.tensor([2**62, -1]),
    }


def assert_same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype
        assert tensor.shape == other[name].shape
        as_bytes = [t.reshape(-1).view(torch.uint8) if t.numel() else t for t in (tensor, other[name])]
        assert torch.equal(*as_bytes), name


def file_of(store: Store, name: str) -> Path:
    return Path(store.root) / "segments" / KEY / name


@pytest.mark.parametrize("place", ["plain folder", "file URI", "another filesystem"])
def test_what_is_published_comes_back(place: str, tmp_path: Path) -> None:
    uri = {
        "plain folder": str(tmp_path / "a b" / "store"),
        "file URI": (tmp_path / "store").as_uri(),
        "another filesystem": "mock:///store",  # Arrow's own, in memory, which takes the way of s3:// and gs://
    }[place]
    store = Store(uri)
    assert store.read_record(KEY) is None
    assert (store.keys(), store.executions(), store.list_files("journal")) == ([], [], [])

    store.log_execution(KEY, "group-1")
    store.log_execution(KEY, "group-2")
    stored = store.publish(TRAINED, make_state())

    assert store.read_record(KEY) == stored
    assert stored.metrics == TRAINED.metrics and stored.steps == TRAINED.steps
    assert_same_bits(store.read_state(KEY, stored.state.sha256), make_state())
    assert store.keys() == [KEY]
    assert store.executions() == [KEY, KEY]
    if place != "another filesystem":
        again = Store(uri)
        assert again.read_record(KEY) == stored
        assert_same_bits(again.read_state(KEY, stored.state.sha256), make_state())
        assert not list(tmp_path.rglob("*.tmp"))


def test_a_state_without_a_record_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between the two writes: the state comes first, so there is no record without one."""
    store = Store(str(tmp_path))

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store, "write_json", killed)
        store.publish(TRAINED, make_state())
    assert file_of(store, "state.safetensors").is_file()
    assert store.read_record(KEY) is None
    assert store.keys() == []


def test_what_a_kill_leaves_is_ignored(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    stored = store.publish(TRAINED, make_state())
    file_of(store, "record.json.0a1b.tmp").write_text('{"half')
    file_of(store, "state.0a1b.tmp").write_bytes(b"half")
    (tmp_path / "segments" / ("f" * 64)).mkdir()
    (tmp_path / "segments" / ("f" * 64) / "record.json.77.tmp").write_text("{}")
    assert store.keys() == [KEY]
    assert store.executions() == []
    assert store.read_record(KEY) == stored
    assert store.read_record("f" * 64) is None


RECORD_DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "cut by its end": lambda content: content[:-3],
    "another metric": lambda content: content.replace(b"0.1", b"0.2"),
    "a null byte": lambda content: content.replace(b"recon", b"rec\0n"),
    "no UTF-8": lambda content: content.replace(b"recon", b"rec\xffn"),
    "a list": lambda content: b"[1, 2]\n",
    "a number": lambda content: b"3\n",
    "no checksum": lambda content: json.dumps({"key": KEY, "format": 2}).encode(),
    "of another key": lambda content: content.replace(KEY.encode(), b"9" * 64),
    "not a number": lambda content: content.replace(b"0.1", b"NaN"),
}


@pytest.mark.parametrize("damage", RECORD_DAMAGES.values(), ids=RECORD_DAMAGES.keys())
def test_a_damaged_record_is_found(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.publish(TRAINED, make_state())
    file = file_of(store, "record.json")
    before = file.read_bytes()
    file.write_bytes(damage(before))
    assert file.read_bytes() != before
    with pytest.raises(DamagedEntryError, match=r"record\.json: "):
        store.read_record(KEY)
    file.unlink()
    assert store.read_record(KEY) is None


def test_a_whole_record_under_another_key_is_damaged(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.publish(TRAINED, make_state())
    file_of(store, ".").rename(tmp_path / "segments" / ("9" * 64))
    with pytest.raises(DamagedEntryError):
        store.read_record("9" * 64)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_or_cut_of_a_state_is_found(data: st.DataObject, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    entry = store.publish(TRAINED, make_state()).state
    file = file_of(store, "state.safetensors")
    content = bytearray(file.read_bytes())
    if data.draw(st.booleans(), label="cut"):
        del content[data.draw(st.integers(0, len(content) - 1), label="at") :]
    else:
        content[data.draw(st.integers(0, len(content) - 1), label="at")] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(content)
    with pytest.raises(DamagedEntryError, match="does not match its checksum"):
        store.read_state(KEY, entry.sha256)


def test_a_state_that_is_gone_is_damaged(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    entry = store.publish(TRAINED, make_state()).state
    file_of(store, "state.safetensors").unlink()
    with pytest.raises(DamagedEntryError, match="is gone"):
        store.read_state(KEY, entry.sha256)


@pytest.mark.parametrize("uri", ["plain", "mock:///store"])
def test_dropping_a_state_keeps_the_record_and_says_so(uri: str, tmp_path: Path) -> None:
    store = Store(str(tmp_path) if uri == "plain" else uri)
    store.drop_state(KEY)  # nothing there: nothing to do
    stored = store.publish(TRAINED, make_state())
    for _ in range(2):
        store.drop_state(KEY)
        record = store.read_record(KEY)
        assert record == replace(stored, state=replace(stored.state, kept=False))
        with pytest.raises(DamagedEntryError, match="is gone"):
            store.read_state(KEY, stored.state.sha256)
    assert store.publish(TRAINED, make_state()) == stored
    assert_same_bits(store.read_state(KEY, stored.state.sha256), make_state())


NUM_RACES = 100


def publish_at_once(uri: str, writer: int, same_state: bool, barrier: Any) -> None:
    store = Store(uri)
    for race in range(NUM_RACES):
        state = make_state()
        state["model.weight"][0] += 0 if same_state else writer
        barrier.wait(timeout=120)
        segment = make_segment(race)
        store.publish(make_trained(segment, {"writer": float(writer)}), state, b"picture")
        record = store.read_record(segment.key)  # whole at any moment
        assert record is not None
        assert store.read_preview(record) == b"picture"
        if same_state:
            assert_same_bits(store.read_state(segment.key, record.state.sha256), state)


@pytest.mark.parametrize("same_state", [True, False])
def test_processes_that_publish_one_key_at_once_leave_one_whole_record(same_state: bool, tmp_path: Path) -> None:
    """As training is deterministic they publish the same; on unlike machines last bits may differ."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    other = context.Process(target=publish_at_once, args=(str(tmp_path), 1, same_state, barrier))
    other.start()
    publish_at_once(str(tmp_path), 0, same_state, barrier)
    other.join()
    assert other.exitcode == 0
    store = Store(str(tmp_path))
    keys = [make_segment(race).key for race in range(NUM_RACES)]
    assert store.keys() == sorted(keys)
    num_mixed = 0
    for key in keys:
        record = store.read_record(key)
        assert record is not None and record.metrics["writer"] in (0, 1)
        files = {"record.json", "state.safetensors", "preview.png"}
        assert {path.name for path in (tmp_path / "segments" / key).iterdir()} == files
        try:
            weight = store.read_state(key, record.state.sha256)["model.weight"]
            assert weight[0, 0] == (1 if same_state else 1 + record.metrics["writer"])
        except DamagedEntryError:
            num_mixed += 1  # the one's record over the other's state: found, and trained again
    print(f"{num_mixed} of {NUM_RACES} mixed")
    assert num_mixed == 0 or not same_state


def test_a_store_writes_nothing_before_it_has_to(tmp_path: Path) -> None:
    Store(str(tmp_path / "new" / "store"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["file", "file/below", "file URI", "pipe://dream/", "s3://"])
def test_a_place_that_cannot_be_used_is_the_users_mistake(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    uri = (tmp_path / "file").as_uri() if name == "file URI" else name if ":" in name else str(tmp_path / name)
    with pytest.raises(
        UserError, match=r"^storage .*: must be a folder or URI that can be written \(.+\); name anoth"
    ):
        Store(uri).check_writable()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "precious"


def test_a_user_relative_folder_is_absolute_from_then_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Store("results").uri == Store("results").root == str(tmp_path / "results")
    assert Store("~/results").uri == str(tmp_path / "home" / "results")


def test_weights_are_named_by_names_types_shapes_and_bytes() -> None:
    state = make_state()
    name = weights_sha256(state)
    assert name == weights_sha256(dict(reversed(state.items())))
    assert name == weights_sha256({k: v for k, v in state.items() if k.startswith("model.")})
    changes = {
        "model.weight": -state["model.weight"],
        "model.half": state["model.half"].view(torch.float16),
        "model.empty": torch.zeros(3, 0),
        "model.counts": state["model.counts"].reshape(2, 1),
        "model.more": torch.zeros(1),
    }
    assert len({name, *(weights_sha256({**state, key: value}) for key, value in changes.items())}) == 6


def test_a_place_that_cannot_be_written_any_more_is_said_in_one_line(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    (tmp_path / "store").write_text("in the way")
    for write in (lambda: store.write_json("x.json", {}), lambda: store.publish(TRAINED, {"w": torch.zeros(1)})):
        with pytest.raises(StorageError, match=r"^storage .*: cannot be written \(.+\); make room or mend it"):
            write()


def test_a_folder_that_cannot_be_listed_is_said_in_one_line(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    (tmp_path / "segments").write_text("a file")
    for listing in (store.files, store.list_files, store.list_folders):
        with pytest.raises(StorageError, match=r"segments: cannot be read .*run the same command again"):
            listing("segments")


def test_when_files_were_written(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for name in ("first", "second"):
        store.write_json(f"searches/{name}", {})
    (tmp_path / "searches" / "folder").mkdir()
    os.utime(tmp_path / "searches" / "first", (1000.5, 1000.5))
    names = [f"searches/{name}" for name in ("first", "second", "folder", "none")]
    found = store.modified(names)
    assert list(found) == names[:2]
    assert found["searches/first"] == 1000.5 and abs(found["searches/second"] - time.time()) < 60


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    (tmp_path / "x.json" / "in the way").mkdir(parents=True)
    with pytest.raises(StorageError):
        store.write_bytes("x.json", b"content")
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_what_was_kept_of_a_segment_comes_back_unless_it_is_damaged(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    assert store.read_partial(KEY) is None
    store.write_partial(KEY, [{"loss": 0.25}], None, make_state())
    partial = store.read_partial(KEY)
    assert partial is not None and partial.steps == [{"loss": 0.25}]
    assert_same_bits(store.read_partial_state(KEY, partial), make_state())
    assert (store.keys(), store.executions(), store.read_record(KEY)) == ([], [], None)

    file = file_of(store, "partial.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DamagedEntryError, match=r"partial.safetensors: does not match"):
        store.read_partial_state(KEY, partial)
    store.drop_partial(KEY)
    store.drop_partial(KEY)
    assert store.read_partial(KEY) is None and store.files("segments") == {}


def test_all_that_is_large_counts_as_stored(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    record = store.publish(TRAINED, make_state(), b"picture")
    assert store.state_bytes() == record.state.num_bytes
    store.write_partial(KEY, [], None, make_state())
    file_of(store, ".tmpa1b2c3").write_bytes(b"half")
    assert store.state_bytes() == 2 * record.state.num_bytes + 4


def test_a_state_that_was_cut_is_not_there(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    record = store.publish(TRAINED, make_state())
    assert store.has_state(record)
    file = file_of(store, "state.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    assert not store.has_state(record)
    file.unlink()
    assert not store.has_state(record)
    store.drop_state(KEY)
    dropped = store.read_record(KEY)
    assert dropped is not None and not store.has_state(dropped)


def test_another_folder_at_the_same_place_is_noticed(tmp_path: Path) -> None:
    """As on a node that does not share the storage."""
    store, other = Store(str(tmp_path / "one")), Store(str(tmp_path / "other"))
    identity = store.identity()
    assert identity is not None and Store(store.uri).identity() == identity
    store.check_identity(identity)
    for _ in range(2):
        with pytest.raises(StorageError, match=rf"^storage {other.root}: node .* mount one that all nodes share"):
            other.check_identity(identity)
        assert other.identity() != identity
    objects = Store("mock:///store")
    assert objects.identity() is None
    objects.check_identity(None)


@pytest.mark.parametrize("uri", ["s3://KEY:HUSH@bucket/x", "s3://bucket/x?secret_key=HUSH", "gs://HUSH@b/x"])
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(UserError, match=r"must not hold credentials.*AWS_ACCESS_KEY_ID") as error:
        Store(uri)
    assert "HUSH" not in str(error.value)
