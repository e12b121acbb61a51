"""What a two-stage training brings, so that the framework can search it: one class."""

from __future__ import annotations

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar, cast

from latentsync_ray.config.recipe import Recipe, StageConfig
from latentsync_ray.config.trainings import resolve_training
from latentsync_ray.core.segment import Metrics
from latentsync_ray.core.terms import Terms

if TYPE_CHECKING:  # what decides and plans needs no torch
    import torch
    from torch import Tensor

RecipeT = TypeVar("RecipeT", bound=Recipe)


@dataclass(frozen=True)
class Inputs(Generic[RecipeT]):
    """What a training reads, found and checked."""

    recipe: RecipeT
    """The recipe, with the places of what was found or made."""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of the contents of everything that the training reads, by name."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """What was measured of it, by name, for the summary."""
    warnings: tuple[str, ...] = ()
    """What the user should know before hours are spent; a line each."""


class Notes(Protocol):
    """Where a training may keep what it measures, so that it is measured once: small JSON files by name."""

    def read_json(self, name: str) -> Any:
        """What was kept; None if there is nothing."""
        ...

    def write_json(self, name: str, values: Any) -> None:
        """Keeps a value."""
        ...


@dataclass(frozen=True)
class TrainingSetup(Generic[RecipeT]):
    """What stays the same for all segments that a worker trains."""

    recipe: RecipeT
    """As `Training.prepare` returned it."""
    seed: int
    """Of everything that is drawn; a search may vary it, so `recipe.seed` does not count."""
    device: torch.device
    """Where this worker computes."""
    rank: int = 0
    """This worker's number."""
    world_size: int = 1
    """Number of workers."""


@dataclass(frozen=True)
class StepWork:
    """What a step takes, on all ranks together."""

    num_samples: int
    """Samples of the global batch."""
    num_flops: float | None = None
    """FLOPs of the model, forward and backward; None if they are not counted."""
    peak_flops: float | None = None
    """FLOPs a second that the ranks' devices could take; None if that is not known."""


class Training(ABC, Generic[RecipeT]):
    """A two-stage training. Everything that it computes is a pure function of settings, state and step.

    Workers make one instance for each seed, and have it build stage after stage from stored states.
    """

    recipe_type: ClassVar[type[Recipe]]
    """The recipe's dataclass: the training's own sections, metrics and objective."""

    @classmethod
    def prepare(cls, recipe: RecipeT, notes: Notes) -> Inputs[RecipeT]:
        """Checks a recipe before anything is started, and makes ready what the training reads.

        Args:
            recipe: What is asked for.
            notes: Where figures that are costly to measure may be kept.

        Raises:
            UserError: Something is missing, or does not fit the rest.
        """
        return Inputs(recipe)

    @abstractmethod
    def __init__(self, setup: TrainingSetup[RecipeT]):
        """Loads what all segments have in common."""

    @abstractmethod
    def build(self, stage: str, config: StageConfig, state: Mapping[str, Tensor] | None, state_stage: str) -> None:
        """Makes a stage ready to train from a state (None: from the initial weights).

        Args:
            stage: `first_stage` or `second_stage`.
            config: The stage's settings, an instance of the recipe's class.
            state: What `state` returned at the end of the parent segment, on the CPU. Its memory may be shared, with
                another `build` or with what this training holds: copy what is kept, and change nothing.
            state_stage: The stage that the state belongs to; if it is another one, only the weights are taken.
        """

    @abstractmethod
    def step(self, global_step: int, stage_step: int) -> Metrics:
        """Takes one optimizer step, the one that leads from global_step to the next.

        Returns:
            Its losses by name: within a stage always the same names, since a segment's mean of each is reported. They
            are looked at once the segment's steps are taken, so that a mapping may read them from a device then.
        """

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """The recipe's metrics on a fixed validation set, equal on all ranks."""

    def validation_terms(self) -> Terms | None:
        """What `validate` has averaged last, sample by sample; None if it is not known. Rank 0 alone is asked.

        With it the answer of a search says how sure it is: trials are compared sample by sample.
        """
        return None

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Everything that training goes on from, on the CPU: `model.*`, and for example `optimizer.*`."""

    def rehearse(self, notes: Notes) -> Sequence[str]:
        """Finds out whether the recipe's stages can be trained on this worker, before anything is.

        Args:
            notes: Where figures that are costly to measure may be kept.

        Returns:
            Lines for the user.

        Raises:
            UserError: A stage cannot be trained here.
        """
        return ()

    def work(self) -> StepWork | None:
        """What a step of the stage that was built takes, for figures of speed; None if that is not known."""
        return None

    def preview(self) -> Tensor | None:
        """A picture (H, W, 3), uint8, of what the model makes, or None; rank 0 alone is asked."""
        return None


def load_training(name: str) -> type[Training[Any]]:
    """The class that a recipe names; raises a `UserError` if there is none."""
    return cast(type[Training[Any]], resolve_training(name))


def code_fingerprint(training: type[Training[Any]]) -> dict[str, str]:
    """SHA-256 of the source file of a training that is not the package's own, as an entry for the fingerprints.

    The package's own has `NUMERICS`, which is raised when its numbers change. Other code must count by its contents:
    an edit would otherwise be answered with what the old code has trained.
    """
    if training.__module__.partition(".")[0] == __name__.partition(".")[0]:
        return {}
    source = inspect.getsourcefile(training)
    assert source is not None
    return {"training": hashlib.sha256(Path(source).read_bytes()).hexdigest()}
