"""The files of configs/cluster: what can be said of them without a cloud."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "configs" / "cluster"


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / name).read_text())


def test_the_launcher_takes_its_file() -> None:
    config = load("aws.yaml")
    validate_config(prepare_config(config))  # as `ray up` does
    assert config["available_node_types"]["gpu"]["max_workers"] == config["max_workers"]


def test_ray_s_autoscaler_reads_kuberay_s_cluster() -> None:
    """As it does in the cluster, with the launcher's schema: Ray ships none of the RayCluster kind itself."""
    cluster = load("kuberay.yaml")
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    cluster["metadata"]["namespace"] = "default"  # the server adds it
    config = _derive_autoscaling_config_from_ray_cr(cluster)
    types = config["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert types["gpu"]["resources"]["GPU"] == 1 and (types["gpu"]["min_workers"], types["gpu"]["max_workers"]) == (
        0,
        8,
    )
    assert config["idle_timeout_minutes"] == 10


def test_all_name_the_ray_that_is_installed() -> None:
    (version,) = re.findall(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    image = f"rayproject/ray:{version}-py312-gpu"
    assert load("aws.yaml")["docker"]["image"] == image
    assert f"FROM {image}\n" in (FOLDER / "Dockerfile").read_text()
    assert load("kuberay.yaml")["spec"]["rayVersion"] == version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (ray,) = [need for need in map(Requirement, project["dependencies"]) if need.name == "ray"]
    major, minor, _ = map(int, version.split("."))
    assert ray.specifier.contains(version) and not ray.specifier.contains(f"{major}.{minor + 1}.0")


def test_strangers_are_refused() -> None:
    """Ray runs what anybody sends to its ports, unless it asks for a token (docs.ray.io, ray-security)."""
    aws = load("aws.yaml")
    assert "--env RAY_AUTH_MODE=token" in aws["docker"]["run_options"]
    assert aws["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    assert load("kuberay.yaml")["spec"]["authOptions"] == {"mode": "token"}
    assert not [file.name for file in FOLDER.iterdir() if "0.0.0.0" in file.read_text()]


def test_the_head_trains_nothing() -> None:
    """It is the one node that is never taken away, and has no GPU."""
    assert load("aws.yaml")["available_node_types"]["head"]["resources"] == {"CPU": 0}
    spec = load("kuberay.yaml")["spec"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (group,) = spec["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
