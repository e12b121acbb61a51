"""A warm worker group: one Ray Train run, whose workers train order after order."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterable
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from latentsync_ray.cluster.ray_internals import (
    CLEANER,
    CONTROLLER,
    PREEMPTION_WATCHER,
    WORKER,
    NoDashboardError,
    living_actors,
    placement_groups,
    remove_placement_groups,
)
from latentsync_ray.config.search import WorkersConfig
from latentsync_ray.engine.messages import GroupSetup, LoopConfig, Rank

logger = logging.getLogger(__name__)

MAX_RESTARTS = 3
"""Restarts of its workers that Ray Train makes in one group's life; then the engine starts a new group."""
_GONE_SECONDS = 10.0
"""A controller ends at most this long after its engine."""


def nodes_for(workers: WorkersConfig) -> set[str]:
    """Ids of the living nodes that have what one worker takes, taken or not."""
    needed = {name: amount for name, amount in _resources(workers).items() if amount}
    return {
        node["NodeID"]
        for node in ray.nodes()
        if node["Alive"] and all(node["Resources"].get(name, 0) >= amount for name, amount in needed.items())
    }


def run_group(name: str, num_workers: int, setup: GroupSetup, avoided: tuple[str, ...] = ()) -> str | None:
    """Runs a group until the engine has no more orders for it.

    Args:
        name: The group's, by which its workers ask the engine for orders.
        num_workers: How many processes it has.
        setup: What all groups are started with.
        avoided: Ids of nodes on which none of its processes may be.

    Returns:
        What ended it too early, one line, or None. Nothing is raised: an exception would be lost in a thread.
    """
    # Ray imports this module wherever the engine is called from, and trials need no torch.
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    os.environ[PREEMPTION_WATCHER] = "1" if setup.preemptible else "0"  # Ray Train hands it to its controller
    try:
        TorchTrainer(
            _train_loop,
            train_loop_config=LoopConfig(setup=setup, group=name),
            scaling_config=ScalingConfig(
                num_workers=num_workers,
                use_gpu=setup.workers.use_gpu,
                resources_per_worker=_resources(setup.workers),
                label_selector={"ray.io/node-id": f"!in({','.join(avoided)})"} if avoided else None,
            ),
            run_config=RunConfig(
                name=name, storage_path=setup.results, failure_config=FailureConfig(max_failures=MAX_RESTARTS)
            ),
        ).fit()
    except Exception as exception:  # whatever it is, those who wait are told
        lines = str(exception).strip().splitlines() or [type(exception).__name__]
        return f"{type(exception).__name__}: {lines[-1]}"
    return None


def empty_places(workers: WorkersConfig) -> set[str]:
    """Ids of this job's placement groups that are reserved for workers and have none in them.

    Ray Train has a process that removes the placement group of a controller which is killed, but only tells it of
    those whose workers are up (ray/train/v2/_internal/callbacks/placement_group_callback.py). The others stay
    reserved as long as the job lasts.

    Raises:
        NoDashboardError: It is not known.
    """
    taken = {actor.placement_group_id for actor in living_actors(WORKER)}
    places = {place.placement_group_id for place in _places(workers) if place.state == "CREATED"}
    return places - taken


def remove_what_is_left(workers: WorkersConfig) -> None:
    """Ends what groups have left behind that were still being started when their engine ended.

    That is the places that they had reserved, and Ray Train's detached process that looks after each group, which
    means to end when its controller is gone, but does so in a thread, where that has no effect
    (ray/train/v2/_internal/execution/controller/placement_group_cleaner.py). Without a dashboard, places stay until
    this process ends, and those processes for good.
    """
    end = time.monotonic() + _GONE_SECONDS
    try:
        while living_actors(CONTROLLER) and time.monotonic() < end:
            time.sleep(0.1)
        remove_placement_groups(place.placement_group_id for place in _places(workers))
        while (cleaners := living_actors(CLEANER)) and time.monotonic() < end:
            for cleaner in cleaners:
                if cleaner.state == "ALIVE" and cleaner.pid:
                    on_its_node = NodeAffinitySchedulingStrategy(cleaner.node_id, soft=False)
                    ending = _end_process.options(scheduling_strategy=on_its_node).remote(cleaner.pid)
                    ray.get(ending, timeout=_GONE_SECONDS)
            time.sleep(0.1)
    except (NoDashboardError, RayError) as error:  # the search has its results all the same
        logger.warning("what groups have reserved is not given back before this process ends: %s", error)


def end_processes(ranks: Iterable[Rank]) -> None:
    """Kills processes of worker groups, each from its own node."""
    ending = [
        _end_process.options(scheduling_strategy=NodeAffinitySchedulingStrategy(rank.node_id, soft=False)).remote(
            rank.pid
        )
        for rank in ranks
    ]
    ray.wait(ending, num_returns=len(ending), timeout=_GONE_SECONDS)  # what is left is of a node that is gone


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
def _end_process(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself
        os.kill(pid, signal.SIGKILL)


def _places(workers: WorkersConfig) -> list[Any]:
    """This job's placement groups for workers, not for trials."""
    return placement_groups({name: float(amount) for name, amount in _resources(workers).items() if amount})


def _resources(workers: WorkersConfig) -> dict[str, float]:
    """What each worker takes."""
    return {"CPU": workers.num_cpus} | ({"GPU": 1} if workers.use_gpu else {})


def _train_loop(config: LoopConfig) -> None:
    # Imported where it runs: the engine and Ray Train's controller start sooner without the networks' libraries.
    from latentsync_ray.engine.worker import train_loop

    train_loop(config)
