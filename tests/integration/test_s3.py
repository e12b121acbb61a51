"""A search on an object store, over a server that fails, throttles and dawdles, gets what it gets on a disk."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Outcome
from records import make_segment, make_trained
from s3 import CREDENTIALS, S3Server
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from latentsync_ray.export import stored_weights
from latentsync_ray.store import Store
from latentsync_ray.store.__main__ import main as look_after
from latentsync_ray.store.upkeep import damages, leftovers, whole_records
from latentsync_ray.tune import main as tune

pytestmark = [pytest.mark.slow, pytest.mark.soak]

GRID = {
    "param_space": {
        "transition.at_step": {"grid": [4, 8]},
        "second_stage.optimizer.lr": {"grid": [0.01, 0.02]},
    },
    "workers": {"max_groups": 1},
}


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[S3Server]:
    """Before the cluster, whose processes inherit the credentials."""
    server = S3Server()
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield server
    print(f"the server: {dict(server.counts)}")
    server.stop()


def folder_of(store: Store) -> str:
    (name,) = store.list_folders("searches")
    return f"searches/{name}"


def history(store: Store) -> dict[str, Any]:
    parts = ("segment", "metrics", "steps", "weights_sha256")
    return {key: [record[part] for part in parts] for key, record in whole_records(store).items()}


def assert_same(remote: Store, local: Outcome) -> None:
    disk, folder = Store(str(local.store)), folder_of(remote)
    assert folder == folder_of(disk)
    assert history(remote) == history(disk)
    for name in ("trials.csv", *(f"best/{file}" for file in disk.list_files(f"{folder}/best"))):
        assert remote.read_bytes(f"{folder}/{name}") == disk.read_bytes(f"{folder}/{name}"), name
    assert {name.rpartition(".")[0] for name in remote.files(f"{folder}/tensorboard")} == {
        name.rpartition(".")[0] for name in disk.files(f"{folder}/tensorboard")
    }


def num_events(file: Path) -> int:
    return len(list(EventFileLoader(str(file)).Load()))


def test_a_search_gets_what_it_gets_on_a_disk(
    server: S3Server, cluster: None, make_search: Any, run_search: Any, capsys: Any, tmp_path: Path
) -> None:
    space = make_search(**GRID)
    local = run_search(space)
    uri = server.uri("trivial/deep")
    assert tune([str(space), f"storage={uri}"]) == 0
    store = Store(uri)
    assert_same(store, local)
    assert list(damages(store)) == []
    folder = folder_of(store)
    assert store.read_json(f"{folder}/summary.json")["steps_trained"] == 4 * len(store.keys())

    # TensorBoard's files are whole.
    store.download(f"{folder}/tensorboard", tmp_path / "tensorboard")
    for file in (tmp_path / "tensorboard").glob("*/*"):
        (other,) = (local.folder / "tensorboard" / file.parent.name).iterdir()
        assert num_events(file) == num_events(other) > 10

    # Its trials can be taken out.
    for trial in range(4):
        weights = stored_weights(store.uri_of(folder), trial)[1]
        assert torch.equal(weights["weight"], stored_weights(str(local.folder), trial)[1]["weight"])

    # Checksums hold there too.
    capsys.readouterr()
    assert look_after([uri, "verify"]) == 0
    record, state = f"segments/{store.keys()[0]}/record.json", f"segments/{store.keys()[1]}/state.safetensors"
    store.write_bytes(record, store.read_bytes(record)[:-9])
    store.write_bytes(state, b"x")
    store.remove(f"{folder}/trials.json")
    assert look_after([uri, "verify"]) == 1
    said = capsys.readouterr().out
    assert f"{record}: is no whole file" in said
    assert tune([str(space), f"storage={uri}"]) == 0
    assert_same(store, local)
    assert f"{record}: is no whole file; it will be trained again" in " ".join(
        store.read_json(f"{folder}/summary.json")["notices"]
    )

    # Again, it trains nothing.
    assert tune([str(space), f"storage={uri}"]) == 0
    assert "this search is finished" in capsys.readouterr().out
    print(f"the server: {dict(server.counts)}")
    assert all(server.counts[fault] > 5 for fault in server.rates)


def test_one_store_outlives_hundreds_of_faults(server: S3Server) -> None:
    """More than the quota of the AWS client's own standard strategy; large states go up in parts."""
    store, before = Store(server.uri("faults")), server.num_errors
    segments = [make_segment(number) for number in range(40)]
    for number, segment in enumerate(segments):
        state = {"model.weight": torch.full((3_000_000 if number % 20 == 0 else 10,), float(number))}
        store.log_execution(segment.key, "group-1")
        record = store.publish(make_trained(segment), state, b"picture" * 100)
        assert torch.equal(store.read_state(segment.key, record.state.sha256)["model.weight"], state["model.weight"])
        if number % 2:
            store.drop_state(segment.key)
    while server.num_errors - before < 150:
        assert list(damages(store)) == []
    assert store.executions() == store.keys() == sorted(segment.key for segment in segments)
    assert leftovers(store, whole_records(store)) == {}


def test_the_demos_own_training(server: S3Server, cluster: None, make_search: Any, run_search: Any) -> None:
    """Real networks, whose states are megabytes."""
    space = make_search(trivial=False, **GRID)
    settings = ["second_stage.num_steps=4", "first_stage.optimizer.lr=1e-4"]
    local = run_search(space, *settings)
    assert tune([str(space), f"storage={server.uri('demo')}", *settings]) == 0
    assert_same(Store(server.uri("demo")), local)


@pytest.mark.parametrize("mistake", ["bucket", "credentials", "server"])
def test_a_mistake_is_one_line_in_bounded_time(mistake: str, server: S3Server, make_search: Any) -> None:
    uri = server.uri("trivial", bucket="nowhere" if mistake == "bucket" else "searches")
    environment = dict(os.environ)
    if mistake == "credentials":
        environment["AWS_ACCESS_KEY_ID"] = "somebody else"
    if mistake == "server":
        uri = uri.replace(server.address, "127.0.0.1:1")
    command = [sys.executable, "-m", "latentsync_ray.tune", str(make_search()), f"storage={uri}"]
    started = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    print(f"{mistake}: {time.monotonic() - started:.0f} s: {done.stderr}")
    assert (done.returncode, done.stdout) == (2, "   0 s  starting Ray\n")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: storage {uri}: must be a folder or URI that can be written (")
    reason = {"bucket": "no bucket nowhere", "credentials": "ACCESS_DENIED", "server": "Failed to connect"}
    assert reason[mistake] in line
