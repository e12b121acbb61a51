"""The Ray cluster that a command uses: joined or started, and whether it can ever hold what a search asks for."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

# Ray reads these when it is imported: progress, results and Ctrl-C are handled here.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# A search starts a process for each trial, which is more than Ray expects of a machine with few CPUs, and says again.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "PYTHON worker processes have been started")
# glibc would give memory back to the system after every step and fetch it again: a quarter of a small model's time.
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "4000000000")
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "4000000000")
os.environ.setdefault("MALLOC_TOP_PAD_", "67108864")
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # a failed trial reports none

import ray

from latentsync_ray.cluster.ray_internals import cluster_started_here
from latentsync_ray.config.errors import Terminated, UserError
from latentsync_ray.config.lengths import extremes
from latentsync_ray.config.recipe import Recipe
from latentsync_ray.config.search import SearchConfig

TRIAL_MEMORY_BYTES = 300 * 2**20
"""What a trial reserves: memory only, so that trials cannot starve worker groups of CPUs."""
_ANSWER_SECONDS = 10.0
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""What every client of a gRPC server says first, as the cluster's head is one (RFC 9113, 3.4 and 6.5)."""
_NODE_TYPE = "ray.io/node-group"
"""Ray's label of nodes that its cluster launcher or KubeRay has started."""


@contextlib.contextmanager
def cluster() -> Iterator[str]:
    """Joins the cluster that there is, or starts one on this machine. Gives the dashboard's address.

    Raises:
        UserError: There can be none.
    """
    connected_before = ray.is_initialized()
    if not connected_before:
        _check_address(os.environ.get("RAY_ADDRESS", ""))
    try:
        yield _connected()
    finally:
        if not connected_before:
            ray.shutdown()


def _connected() -> str:
    """Connects this process; Ray answers SIGTERM in its own way from here on, which is undone."""
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        context = ray.init(
            include_dashboard=True, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True
        )
    except SystemExit:  # Ray's way, while it starts
        raise Terminated from None
    except Exception as error:  # Ray raises this very class where a node is slow to start
        reason = " ".join(str(error).split())
        raise UserError(
            f"Ray: cannot be started or joined here ({reason}); see RAY_TMPDIR, RAY_ADDRESS and the free memory"
        ) from None
    finally:
        if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)
    return f"http://{context.dashboard_url}" if context.dashboard_url else "not running"


def _check_address(address: str) -> None:
    """Refuses the address of a cluster where nobody answers, for which Ray would wait for minutes.

    Args:
        address: What `ray.init` is to join; nothing, `auto` and `local` are for Ray to find.

    Raises:
        UserError: It is no address, or nobody is there.
    """
    if address in ("", "auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdigit():
        rule = "must be host:port of a cluster's head node, auto or local"
        raise UserError(f"RAY_ADDRESS: {rule}, got {address}; run the command on a node of the cluster")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS) as connection:
            connection.sendall(_HTTP2_PREFACE)
            connection.recv(1)
    except (OSError, OverflowError, UnicodeError) as error:
        remedy = "start that cluster, or unset RAY_ADDRESS to start one here"
        raise UserError(f"RAY_ADDRESS: nobody answers at {address} ({error}); {remedy}") from None


def outlives_this_process() -> bool:
    """Whether the cluster that this process is connected to was started by somebody else."""
    return not cluster_started_here()


def check_resources(search: SearchConfig, recipe: Recipe) -> list[str]:
    """Refuses a search whose worker groups or trials the cluster could never hold.

    Returns:
        Warnings instead, where the launcher or KubeRay has started the cluster: it may grow, no matter by what.

    Raises:
        UserError: With what is asked and what there is.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    have = [node["Resources"] for node in nodes]
    worker = {"CPU": search.workers.num_cpus} | ({"GPU": 1.0} if search.workers.use_gpu else {})
    lines = [
        lacking(f"workers: a group of {size}", size, worker, have, "lower num_workers or workers.num_cpus")
        for size in sorted(_group_sizes(search, recipe))
    ]
    lines.append(lacking("memory: a trial", 1, {"memory": TRIAL_MEMORY_BYTES}, have, "start Ray with more memory"))
    complaints = [line for line in lines if line is not None]
    if complaints and not any(_NODE_TYPE in node.get("Labels", {}) for node in nodes):
        raise UserError(complaints[0])
    return [f"{line}; waiting for the autoscaler, if there is one" for line in complaints]


def nodes_come_and_go() -> bool:
    """Whether nodes may be added or taken away while a search runs: there are several, or a launcher started them."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return len(nodes) > 1 or any(_NODE_TYPE in node.get("Labels", {}) for node in nodes)


def lacking(
    what: str, count: int, each: Mapping[str, float], nodes: Sequence[Mapping[str, float]], remedy: str
) -> str | None:
    """Says that something does not fit into a cluster, even if all of it were free; None if it does.

    Args:
        what: What is to be placed, for the message.
        count: Of how many equal parts it consists; each has to fit on one node.
        each: Resources of a part.
        nodes: Resources of each node.
        remedy: What the user can do besides joining a larger cluster.
    """
    fitting = sum(_times(node, each) for node in nodes)
    if fitting >= count:
        return None
    needs = _amounts({name: count * amount for name, amount in each.items()}) + (
        f" ({_amounts(each)} on one node for each worker)" if count > 1 else " on one node"
    )
    kinds = Counter(_amounts({name: node.get(name, 0) for name in each}) for node in nodes)
    there = "; ".join(f"{number} node{'s' * (number > 1)} with {kind}" for kind, number in kinds.items())
    return f"{what} needs {needs}, the cluster has {there or 'no node'}; {remedy}, or join a larger cluster"


def _times(node: Mapping[str, float], each: Mapping[str, float]) -> int:
    """How often `each` fits on a node; Ray counts in steps of 0.0001."""
    return min(int(node.get(name, 0) / amount + 1e-6) for name, amount in each.items())


def _amounts(resources: Mapping[str, float]) -> str:
    return " and ".join(
        f"{amount / 2**20:.0f} MiB of memory" if name == "memory" else f"{amount:g} {name}"
        for name, amount in resources.items()
    )


def _group_sizes(search: SearchConfig, recipe: Recipe) -> set[int]:
    """The least and the greatest world sizes that trials may ask for; what holds the greatest holds all others."""
    names = [f"{stage}.num_workers" for stage in ("first_stage", "second_stage")]
    return {size for name in names for size in extremes(search, recipe, name)}
