"""What a cluster has, and whether it can ever hold what a search asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import ray

from latentsync_ray.config.errors import UserError
from latentsync_ray.config.lengths import extremes
from latentsync_ray.config.recipe import Recipe
from latentsync_ray.config.search import SearchConfig

TRIAL_MEMORY_BYTES = 300 * 2**20
"""What a trial reserves: memory only, so that trials cannot starve worker groups of CPUs."""
_NODE_TYPE = "ray.io/node-group"
"""Ray's label of nodes that its cluster launcher or KubeRay has started."""


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
