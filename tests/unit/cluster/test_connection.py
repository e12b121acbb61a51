"""What a cluster can never hold."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from latentsync_ray.cluster import connection as cluster
from latentsync_ray.cluster import resources
from latentsync_ray.cluster.resources import check_resources, lacking
from latentsync_ray.config.domains import read_domain
from latentsync_ray.config.errors import UserError
from latentsync_ray.config.loading import load_recipe
from latentsync_ray.config.recipe import Recipe
from latentsync_ray.config.search import SearchConfig, WorkersConfig

GIB = 2**30
SMALL, BIG = {"CPU": 2.0, "memory": 4.0 * GIB}, {"CPU": 8.0, "GPU": 2.0, "memory": 16.0 * GIB}


@pytest.mark.parametrize(
    ("count", "each", "nodes", "fits"),
    [
        (2, {"CPU": 1}, [SMALL], True),
        (3, {"CPU": 1}, [SMALL], False),
        (3, {"CPU": 1}, [SMALL, SMALL], True),
        (1, {"CPU": 4}, [SMALL, SMALL], False),  # the sum would do, but no node does
        (3, {"CPU": 0.1}, [{"CPU": 0.3}], True),
        (1, {"CPU": 1, "GPU": 1}, [SMALL, SMALL], False),
        (2, {"CPU": 1, "GPU": 1}, [SMALL, BIG], True),
        (2, {"CPU": 5, "GPU": 1}, [SMALL, BIG], False),  # GPUs enough, CPUs beside them not
        (1, {"memory": 300 * 2**20}, [{"memory": 200.0 * 2**20}] * 3, False),
        (1, {"CPU": 1}, [], False),
    ],
)
def test_every_part_needs_a_node(
    count: int, each: dict[str, float], nodes: list[dict[str, float]], fits: bool
) -> None:
    assert (lacking("it", count, each, nodes, "change it") is None) == fits


def test_the_line_says_what_is_asked_and_what_there_is() -> None:
    assert lacking("workers: a group of 4", 4, {"CPU": 1, "GPU": 1}, [SMALL, BIG, SMALL], "lower it") == (
        "workers: a group of 4 needs 4 CPU and 4 GPU (1 CPU and 1 GPU on one node for each worker), the cluster has "
        "2 nodes with 2 CPU and 0 GPU; 1 node with 8 CPU and 2 GPU; lower it, or join a larger cluster"
    )
    assert lacking("memory: a trial", 1, {"memory": 300 * 2**20}, [{"memory": 2.0**20}], "raise it") == (
        "memory: a trial needs 300 MiB of memory on one node, the cluster has 1 node with 1 MiB of memory; "
        "raise it, or join a larger cluster"
    )


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe(Path(__file__).parents[3] / "configs" / "demo")


def seen(monkeypatch: pytest.MonkeyPatch, *nodes: dict[str, Any]) -> None:
    monkeypatch.setattr(resources.ray, "nodes", lambda: [{"Alive": True, **node} for node in nodes])


@pytest.mark.parametrize(
    ("space", "workers", "line"),
    [
        ({}, WorkersConfig(), None),
        ({}, WorkersConfig(use_gpu=True), "1 GPU"),
        ({}, WorkersConfig(num_cpus=3), "3 CPU"),
        ({"second_stage.num_workers": {"grid": [1, 4]}}, WorkersConfig(), "a group of 4"),
        ({"first_stage.num_workers": {"randint": [1, 4]}}, WorkersConfig(), "a group of 3"),
    ],
)
def test_every_group_that_a_trial_may_ask_for_is_looked_at(
    space: dict[str, Any], workers: WorkersConfig, line: str | None, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    domains = {name: read_domain(entry, name) for name, entry in space.items()}
    search = SearchConfig("recipe", "search", param_space=domains, workers=workers)
    gone = {"Alive": False, "Resources": BIG}
    seen(monkeypatch, {"Resources": SMALL}, gone)
    if line is None:
        check_resources(search, recipe)
        return
    with pytest.raises(UserError, match=line):
        check_resources(search, recipe)


def test_a_cluster_that_may_grow_is_waited_for(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    search = SearchConfig("recipe", "search", workers=WorkersConfig(use_gpu=True))
    head = {"Resources": SMALL, "Labels": {"ray.io/node-group": "ray.head.default"}}
    seen(monkeypatch, head)
    (warning,) = check_resources(search, recipe)
    assert warning.startswith("workers: a group of 1 needs 1 CPU and 1 GPU")
    assert check_resources(dataclasses.replace(search, workers=WorkersConfig()), recipe) == []


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("ray://host:10001", "RAY_ADDRESS: must be host:port of .* head node, auto or local, got ray://host:10001"),
        ("nonsense", "RAY_ADDRESS: must be host:port"),
        ("host:name", "RAY_ADDRESS: must be host:port"),
        ("127.0.0.1:1", r"RAY_ADDRESS: nobody answers at 127.0.0.1:1 \(.*refused.*\); start that cluster, or unset"),
        ("127.0.0.1:99999", "RAY_ADDRESS: nobody answers at 127.0.0.1:99999"),
        ("no-such-host.invalid:6379", "RAY_ADDRESS: nobody answers at no-such-host.invalid:6379"),
    ],
)
def test_an_address_where_no_cluster_is_is_told_at_once(address: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        cluster._check_address(address)


def test_so_is_one_that_takes_calls_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"nobody answers at {address} \(timed out\)"):
            cluster._check_address(address)


def test_what_ray_finds_or_starts_itself_is_not_asked() -> None:
    for address in ("", "auto", "local"):
        cluster._check_address(address)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("RAY_TMPDIR", "", "AF_UNIX path length cannot exceed 107 bytes"),
        ("RAY_ADDRESS", "127.0.0.1:1", "nobody answers at 127.0.0.1:1"),
        pytest.param("RAY_ADDRESS", "ray://127.0.0.1:1", "got ray://127.0.0.1:1", marks=pytest.mark.soak),
    ],
)
def test_a_command_says_in_one_line_why_it_has_no_cluster(name: str, value: str, said: str, tmp_path: Path) -> None:
    if name == "RAY_TMPDIR":
        value = f"{tmp_path}/{'x' * 100}"
        Path(value).mkdir()
    root = Path(__file__).parents[3]
    command = [sys.executable, "-m", "latentsync_ray.train", f"{root}/configs/demo", f"storage={tmp_path}/results"]
    environment = {key: text for key, text in os.environ.items() if key != "RAY_ADDRESS"} | {name: value}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stdout.count("\n") == 1 and done.stdout.endswith(" s  starting Ray\n")
    assert done.stderr.startswith(("error: Ray", "error: RAY_ADDRESS")) and said in done.stderr
