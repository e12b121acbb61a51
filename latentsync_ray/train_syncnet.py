"""Trains StableSyncNet on prepared clips: `latentsync-ray train-syncnet configs/demo/syncnet.yaml`.

The same command goes on from the last checkpoint, and trains nothing once it is finished.
"""

from __future__ import annotations

from latentsync_ray.cli import run_cli
from latentsync_ray.cluster.environment import set_ray_environment
from latentsync_ray.latentsync.syncnet.config import load_syncnet
from latentsync_ray.usage import CommandParser


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line and trains. Returns the exit status."""
    options = parser().parse_args(arguments)
    config = load_syncnet(options.config, options.overrides)
    # A report waits until Ray Train looks the next time, 2 s by default.
    set_ray_environment(RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.5")

    from latentsync_ray.latentsync.syncnet.run import (
        run_syncnet,  # Ray and torch take seconds, which a mistyped key need not
    )

    return run_syncnet(config)


def parser() -> CommandParser:
    """The command's arguments."""
    made = CommandParser(
        "train-syncnet",
        "FILE [key=value ...]",
        "Trains a SyncNet on prepared clips, and writes the one of the best validation\n"
        "accuracy. The same command goes on from its last checkpoint.",
        ("configs/demo/syncnet.yaml", "configs/256/syncnet.yaml output=models/syncnet"),
    )
    made.add_argument("config", metavar="FILE", help="a file such as configs/demo/syncnet.yaml")
    made.add_argument("overrides", nargs="*", metavar="key=value", help="values of the file")
    return made


if __name__ == "__main__":
    run_cli(main)
