"""Settings of the experiment trackers that a search may report to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from latentsync_ray.config.errors import Complaint


@dataclass(frozen=True)
class MLflowConfig:
    """MLflow; needs the extra `mlflow`."""

    experiment: str | None = None
    """Name of the experiment; null is the search's name."""
    tracking_uri: str | None = None
    """Address of the server, or `sqlite:///FILE`; null leaves that to MLflow (`MLFLOW_TRACKING_URI`)."""

    def complaints(self) -> Iterator[Complaint]:
        """The rules that these values break."""
        for name in ("experiment", "tracking_uri"):
            if getattr(self, name) == "":
                yield name, "must not be empty", "null takes the usual one"


@dataclass(frozen=True)
class WandbConfig:
    """Weights & Biases; needs the extra `wandb`, and `wandb login` where it is online."""

    project: str = "latentsync_ray"
    """Name of the project."""
    entity: str | None = None
    """User or team; null is your own."""
    mode: Literal["online", "offline"] | None = None
    """offline writes files below `WANDB_DIR`, or the working directory, for `wandb sync`; null leaves that to W&B."""

    def complaints(self) -> Iterator[Complaint]:
        """The rules that these values break."""
        if not self.project:
            yield "project", "must not be empty", "name one"


@dataclass(frozen=True)
class TrackersConfig:
    """Where runs are reported to, besides the search's own folder; null leaves a tracker out."""

    mlflow: MLflowConfig | None = None
    """Has an MLflow experiment of the search."""
    wandb: WandbConfig | None = None
    """Has a group of the search in a project of Weights & Biases."""
