"""What a cluster can never hold."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from latentsync_ray.cluster import connection as cluster
from latentsync_ray.cluster.connection import check_resources, lacking
from latentsync_ray.config.domains import read_domain
from latentsync_ray.config.loading import load_recipe
from latentsync_ray.config.recipe import Recipe, UserError
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
    monkeypatch.setattr(cluster.ray, "nodes", lambda: [{"Alive": True, **node} for node in nodes])


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
