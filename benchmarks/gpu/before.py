"""Steps of the code at commit 4810e33, carried as an archive: the same card and run, before any of this was built.

The archive is `git archive 4810e33` of the modules that its bench of steps imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

ARCHIVE = Path(__file__).parent / "before_4810e33.tar.xz"
_CHILD = """
import dataclasses, json, sys, tempfile
from pathlib import Path
from benchmarks import gpu
from latentsync_ray.configfiles import search_of_one
size = gpu.SMALL if sys.argv[1] == "small" else gpu.FULL
stage, device, num_steps = sys.argv[2], sys.argv[3], int(sys.argv[4])
gpu.NUM_WARM_UP_STEPS = int(sys.argv[5])
_, recipe = search_of_one(gpu.CONFIGS / size.recipe, sys.argv[6:])
with tempfile.TemporaryDirectory() as folder:
    recipe = gpu.make_inputs(size, recipe, Path(folder))
    config = dataclasses.replace(getattr(recipe, stage), dtype="bfloat16")
    measured = gpu.measure(recipe, stage, config, device, num_steps)
print(json.dumps({**dataclasses.asdict(measured), "batch_size": config.batch_size}))
"""


def step_before(
    small: bool, stage: str, device: str, num_steps: int, num_warm_up: int, overrides: list[str], limit_seconds: float
) -> dict[str, Any]:
    """Seconds of a step (median), of the first one, and memory.

    Raises:
        RuntimeError: The old code has failed; its last line.
    """
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(ARCHIVE) as archive:
            archive.extractall(folder, filter="data")
        size = "small" if small else "full"
        arguments = [size, stage, device, str(num_steps), str(num_warm_up), *overrides]
        environment = {**os.environ, "PYTHONPATH": folder}
        done = subprocess.run(
            [sys.executable, "-P", "-c", _CHILD, *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=limit_seconds,
        )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures | {"samples_per_second": figures["batch_size"] / figures["seconds"]}
