"""What Ray and the C library read from the environment, in this process and in those that Ray starts from it."""

from __future__ import annotations

import os

_VARIABLES = {
    # Progress, results and Ctrl-C are handled here.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # A search starts a process for each trial: more than Ray expects of a machine with few CPUs, and says again.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "PYTHON worker processes have been started",
    # glibc would give memory back after every step and fetch it again: a quarter of a small model's time.
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "MALLOC_TOP_PAD_": "67108864",
    # A failed trial reports no metric.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
}


def set_ray_environment(**more: str) -> None:
    """Sets what Ray reads when it is imported, unless the user has set it: to be called before that.

    Args:
        more: Further variables of one command.
    """
    for name, value in (_VARIABLES | more).items():
        os.environ.setdefault(name, value)
