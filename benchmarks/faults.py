"""Faults for a search on a test cluster: kill -9, and stops of 20 seconds, of any process that belongs to it."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

ROOT = Path(__file__).resolve().parents[1]
TRIVIAL = ROOT / "tests" / "integration"
"""Where the training is that costs nothing."""
TITLES = {
    "worker": ("ray::RayTrainWorker",),
    "controller": ("ray::TrainController",),
    "engine": ("ray::Engine",),
    "trial": ("ray::Trial", "ray::_Inner"),
}
KINDS = (*TITLES, "driver", "raylet")
NODE = {"num_cpus": 2, "memory": 8 * 2**30, "object_store_memory": 100 * 2**20}
STOP_SECONDS = 20.0
"""For so long a stopped process does nothing; too short to be taken for a hang."""


@dataclass
class Fault:
    """One kill -9, or one stop."""

    kind: str
    pid: int
    time: float = field(default_factory=time.time)
    is_stop: bool = False

    def ends_one_within(self, begun: float, end: float) -> bool:
        """Whether it may be why what was begun at a time was begun again."""
        return not self.is_stop and begun <= self.time <= end + 0.01

    def __str__(self) -> str:
        return f"{'stop' if self.is_stop else 'kill'} of {self.kind}, process {self.pid}"


class Search:
    """The command, which is started again whenever it was killed."""

    def __init__(self, space: Path, storage: Path, address: str):
        self._command = [sys.executable, "-m", "latentsync_ray.tune", str(space), f"storage={storage}"]
        self._log = storage.with_suffix(".txt")
        path = os.pathsep.join([str(ROOT), str(TRIVIAL)])
        self._environment = {**os.environ, "RAY_ADDRESS": address, "PYTHONPATH": path}
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def ended(self) -> bool:
        """Whether it has done its work."""
        status = self.process.poll()
        assert status in (None, 0), f"the search ended with status {status}:\n{self.output()}"
        return status == 0

    def output(self) -> str:
        return self._log.read_text()


class Faults:
    """Chooses processes at random, kills or stops them, and lets the stopped ones go on in time.

    Args:
        chance: Decides.
        search: The command.
        cluster: On which it runs.
        nodes: Its nodes but the head.
        stops: Whether there are stops beside kills.
    """

    def __init__(self, chance: random.Random, search: Search, cluster: Cluster, nodes: list[Any], stops: bool):
        self._chance, self._search, self._cluster, self._nodes = chance, search, cluster, nodes
        self._wanted = [(kind, is_stop) for kind in KINDS for is_stop in ((False, True) if stops else (False,))]
        self._due: list[tuple[str, bool]] = []  # all that is wanted, shuffled, again and again
        self._stopped: list[tuple[float, psutil.Process]] = []

    def next(self) -> Fault | None:
        """The next fault, if there is a process for it."""
        self._due = self._due or self._chance.sample(self._wanted, len(self._wanted))
        for kind, is_stop in self._due:
            fault = self._stop(kind) if is_stop else self._kill(kind)
            if fault is not None:
                self._due.remove((kind, is_stop))
                return fault
        return None

    def let_go_on(self, everybody: bool = False) -> None:
        """Continues processes that have been stopped for long enough."""
        now = time.monotonic()
        for until, process in list(self._stopped):
            if everybody or now >= until:
                self._stopped.remove((until, process))
                with contextlib.suppress(psutil.NoSuchProcess):  # it was killed meanwhile
                    process.resume()

    def _stop(self, kind: str) -> Fault | None:
        process = self._choose(kind)
        if process is None or process in [stopped for _, stopped in self._stopped]:
            return None
        try:
            process.suspend()
        except psutil.NoSuchProcess:
            return None
        self._stopped.append((time.monotonic() + STOP_SECONDS, process))
        return Fault(kind, process.pid, is_stop=True)

    def _kill(self, kind: str) -> Fault | None:
        """What a machine's owner would start again is started again."""
        process = self._choose(kind)
        if process is None:
            return None
        try:
            process.kill()
        except psutil.NoSuchProcess:
            return None
        if kind == "driver":
            self._search.process.wait()
            fault = Fault(kind, process.pid)
            self._search.start()
            return fault
        fault = Fault(kind, process.pid)
        if kind == "raylet":
            (node,) = (node for node in self._nodes if _raylet(node) == process.pid)
            self._nodes.remove(node)
            node.kill_all_processes(check_alive=False, allow_graceful=False)
            self._nodes.append(self._cluster.add_node(**NODE))
        return fault

    def _choose(self, kind: str) -> psutil.Process | None:
        """A process of a kind, if there is one."""
        if kind in TITLES:
            found = sorted(ray_processes(TITLES[kind]), key=lambda process: process.pid)
            return self._chance.choice(found) if found else None
        pid = self._search.process.pid if kind == "driver" else _raylet(self._chance.choice(self._nodes))
        try:
            return psutil.Process(pid)
        except psutil.NoSuchProcess:
            return None


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def ray_processes(titles: tuple[str, ...]) -> list[psutil.Process]:
    """Processes of our own clusters whose titles begin so."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith(titles):
                found.append(process)
        except psutil.Error:
            continue  # it has just ended
    return found
