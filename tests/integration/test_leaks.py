"""Nothing is left behind on a cluster that outlives the command: after many stopped trials, Ctrl-C, and errors."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.soak]
SECONDS = 30
"""Ray ends what a job has left soon after the job, not at once."""
OF_RAY = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::_AutoscalingCoordinatorActor")
"""Processes that a cluster keeps for all jobs; the last one is Ray Train's and Ray Data's, and holds no resources."""
CACHES = ("torchinductor_", "pymp-")
"""What torch keeps for each user, and the socket of the dashboard's processes."""


@pytest.fixture(scope="module")
def own_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A cluster of this test's own: its address, and the folder in which all its processes make temporary files."""
    import ray
    from ray.cluster_utils import Cluster

    scratch = tmp_path_factory.mktemp("scratch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(scratch))
        patch.setenv("RAY_TMPDIR", "/tmp")  # the paths of Ray's sockets must be short
        head = {"num_cpus": 2, "num_gpus": 1, "include_dashboard": True, "dashboard_port": free_port()}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        patch.setenv("RAY_ADDRESS", cluster.address)  # Ray's state API asks the cluster that this names
        ray.init(log_to_driver=False)
        yield cluster.address, scratch
        ray.shutdown()
        cluster.shutdown()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(address: str, space: Path, storage: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "latentsync_ray.tune", str(space), f"storage={storage}", *arguments]
    return subprocess.Popen(
        command,
        env={**os.environ, "RAY_ADDRESS": address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def left_behind(scratch: Path) -> dict[str, Any]:
    """What a command has left on the cluster: empty if it has left nothing."""
    import ray
    from ray.util.state import list_actors

    groups = ray.util.placement_group_table().values()
    have, free = ray.cluster_resources(), ray.available_resources()
    me = psutil.Process()
    children = [p for child in me.children() for p in [child, *child.children(recursive=True)]]
    left = {
        "placement groups": [group for group in groups if group["state"] != "REMOVED"],
        "actors": [a.class_name for a in list_actors() if a.state != "DEAD" and f"ray::{a.class_name}" not in OF_RAY],
        "processes": [t for t in map(title, children) if t.startswith("ray::") and not t.startswith(OF_RAY)],
        "resources": {name: free.get(name, 0) for name in ("CPU", "GPU", "memory") if free.get(name) != have[name]},
        "temporary files": [path.name for path in scratch.iterdir() if not path.name.startswith(CACHES)],
    }
    return {name: what for name, what in left.items() if what}


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def assert_nothing_left(scratch: Path) -> None:
    ended = time.monotonic()
    while (left := left_behind(scratch)) and time.monotonic() - ended < SECONDS:
        time.sleep(0.5)
    assert not left
    print(f"nothing left {time.monotonic() - ended:.1f} s after the end")


def test_after_a_hundred_stopped_trials(own_cluster: Any, make_search: Any, tmp_path: Path) -> None:
    space = make_search(
        param_space={"second_stage.optimizer.lr": {"loguniform": [1e-4, 1e-1]}},
        num_samples=150,
        trial_scheduler={"name": "asha", "grace_period": 4, "reduction_factor": 4},
        overrides={"transition.at_step": 4},
    )
    process = start(own_cluster[0], space, tmp_path / "results")
    output, errors = process.communicate(timeout=1200)
    assert process.returncode == 0, output + errors
    stopped = (next(tmp_path.glob("results/searches/*/trials.csv"))).read_text().count(",stopped,")
    print(f"{stopped} trials were stopped")
    assert stopped >= 100
    assert_nothing_left(own_cluster[1])


def test_after_a_search_that_finds_everything(own_cluster: Any, make_search: Any, tmp_path: Path) -> None:
    """It ends before the group that it has started is up."""
    space = make_search()
    for _ in range(2):
        process = start(own_cluster[0], space, tmp_path / "results")
        output, errors = process.communicate(timeout=600)
        assert process.returncode == 0, output + errors
        assert_nothing_left(own_cluster[1])
        next(tmp_path.glob("results/searches/*/trials.json")).unlink()


def test_after_ctrl_c(own_cluster: Any, make_search: Any, tmp_path: Path) -> None:
    slow = {stage: {"step_seconds": 3} for stage in ("first_stage", "second_stage")}
    process = start(own_cluster[0], make_search(stage=slow), tmp_path / "results")
    end = time.monotonic() + 240
    while not any(tmp_path.glob("results/segments/*/record.json")) and time.monotonic() < end:
        time.sleep(0.1)
    assert {"actors", "processes", "resources"} <= set(left_behind(own_cluster[1]))  # this test can see something
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, output + errors
    assert_nothing_left(own_cluster[1])


def test_after_an_error_in_the_training(own_cluster: Any, make_search: Any, tmp_path: Path) -> None:
    space = make_search(stage={"second_stage": {"fail_at_step": 10}})
    process = start(own_cluster[0], space, tmp_path / "results")
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 1, output + errors
    assert "a fault that comes again" in output
    assert_nothing_left(own_cluster[1])
