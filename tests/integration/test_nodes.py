"""Several nodes: a group that spans them, and a node that is taken away, whose training goes on elsewhere."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import OneOrder, Outcome, ray_processes

from latentsync_ray.config.search import WorkersConfig
from latentsync_ray.engine.groups import run_group
from latentsync_ray.engine.messages import GroupSetup, WorkerOrder
from latentsync_ray.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.soak]


@pytest.fixture
def two_nodes() -> Iterator[Any]:
    """A cluster whose head holds no worker, and two nodes that hold one each."""
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "memory": 4 * 2**30, "object_store_memory": 100 * 2**20}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
        with socket.create_server(("127.0.0.1", 0)) as server:
            dashboard = {"include_dashboard": True, "dashboard_port": server.getsockname()[1]}
        cluster = Cluster(initialize_head=True, head_node_args=node | {"num_cpus": 0} | dashboard)
        cluster.add_node(**node)
        cluster.add_node(**node)
        patch.setenv("RAY_ADDRESS", cluster.address)  # Ray's state API asks the cluster that this names
        ray.init(log_to_driver=False)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def node_of_the(class_name: str) -> str:
    from ray.util.state import list_actors

    (found,) = [actor for actor in list_actors() if actor.class_name == class_name and actor.state == "ALIVE"]
    return str(found.node_id)


@pytest.mark.timeout(600)
def test_a_group_that_spans_nodes_gets_what_one_worker_gets(
    two_nodes: Any, make_search: Any, run_search: Any
) -> None:
    """No node has room for both workers, so that gradients go from one to the other."""
    settings = ["transition.at_step=4", "second_stage.num_steps=4"]
    for stage in ("first_stage", "second_stage"):
        settings += [f"{stage}.batch_size=4", f"{stage}.optimizer.lr=1e-5"]
    space = make_search(trivial=False, workers={"max_groups": 1})
    one = run_search(space, *settings, store="one")
    settings += [f"{stage}.num_workers=2" for stage in ("first_stage", "second_stage")]
    two = run_search(space, *settings, store="two")
    for name in ("val/recon", "val/sync", "val/lpips", "val/trepa", "train/loss"):
        assert float(two.trials[0][name]) == pytest.approx(float(one.trials[0][name]), rel=1e-5), name
    assert not set(one.weights) & set(two.weights)  # another order of sums: it was two that trained


@pytest.mark.timeout(600)
def test_a_node_is_taken_away(two_nodes: Any, make_search: Any, run_search: Any, tmp_path: Path) -> None:
    import ray

    settings = {
        "stage": {"first_stage": {"step_seconds": 1}},
        "overrides": {"transition": {"at_step": 40, "min_step": 40, "max_step": 40}},
        "workers": {"max_groups": 1},
    }
    arguments = ["first_stage.report_every_steps=40"]
    space = make_search(**settings)
    storage = tmp_path / "results"
    command = [sys.executable, "-m", "latentsync_ray.tune", str(space), f"storage={storage}", *arguments]
    environment = {**os.environ, "RAY_ADDRESS": two_nodes.address}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 240
    while not any(storage.glob("segments/*/executions/*.json")) and time.monotonic() < end:
        time.sleep(0.2)
    time.sleep(20)  # steps that are not to be trained again
    (head,) = (node["NodeID"] for node in ray.nodes() if "node:__internal_head__" in node["Resources"])
    assert node_of_the("Engine") == head  # which is never taken away
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--deadline-remaining-seconds"]
    drain = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", two_nodes.address]
    subprocess.run([*drain, "--node-id", node_of_the("RayTrainWorker"), *reason, "60"], check=True)
    told = time.time()
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, output + errors

    (table,) = storage.glob("searches/*/trials.csv")
    outcome = Outcome(table.parent, storage, 0)
    assert any("a node is taken away" in notice for notice in outcome.summary["notices"])
    (partial,) = storage.glob("segments/*/partial.json")
    num_kept, key = len(json.loads(partial.read_text())["steps"]), partial.parent.name
    assert 5 <= num_kept < 40
    print(f"{num_kept} of 40 steps were kept {partial.stat().st_mtime - told:.1f} s after the notice")
    trained_again = outcome.records[key]["timings"]["train_seconds"]
    assert trained_again < 40 - num_kept + 5
    assert outcome.executed.count(key) == 2

    clean = run_search(space, *arguments, store="undisturbed")
    assert outcome.trials == clean.trials
    assert outcome.weights == clean.weights
    for entry in ("steps", "start_weights_sha256"):
        assert outcome.records[key][entry] == clean.records[key][entry]


class KillsTheRaylet(OneOrder):
    """It ends the raylet of the worker's node, as the worker is about to begin; the next worker gets no order."""

    def __init__(self, folder: Path):
        self._killed = folder / "killed"

    def next_order(self, group: str, number: int) -> WorkerOrder | None:
        return None if self._killed.exists() else super().next_order(group, number)

    def order_stands(self, group: str, number: int) -> bool:
        (worker,) = ray_processes("ray::RayTrainWorker")
        raylet = worker.parent()
        assert raylet is not None
        raylet.kill()
        while worker.ppid() == raylet.pid:
            time.sleep(0.01)
        self._killed.touch()
        return True


@pytest.mark.timeout(600)
def test_a_group_without_its_raylet_begins_nothing_more(two_nodes: Any, tmp_path: Path) -> None:
    import ray

    engine = ray.remote(KillsTheRaylet).options(name="kills", num_cpus=0).remote(tmp_path)
    folder = str(tmp_path)
    setup = GroupSetup("kills", WorkersConfig(), "trivial:TrivialTraining", folder, 300.0, folder, True)
    run_group("group-1", 1, setup)
    ray.kill(engine)
    assert (tmp_path / "killed").exists() and Store(str(tmp_path)).executions() == []
