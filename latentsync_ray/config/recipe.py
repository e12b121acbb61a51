"""A recipe: a whole two-stage training. What every training has is here; a training adds its own sections.

A training (`core.training.Training`) names a subclass of `Recipe` with its own frozen dataclasses, for example
`latentsync.config.LatentSyncRecipe`. `loading` reads it from a folder of YAML files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, final

from latentsync_ray.config.errors import Complaint, UserError, seed_complaints
from latentsync_ray.config.length import LengthConfig, TwoStages, first_stage_steps, second_stage_steps
from latentsync_ray.config.transition import TransitionConfig

FIRST_STAGE, SECOND_STAGE = "first_stage", "second_stage"
OBJECTIVE = "val/objective"
"""The metric that the framework adds to those of a training: `Recipe.objective` over them."""
Mode = Literal["min", "max"]


@dataclass(frozen=True)
class Metric:
    """A validation metric that a training knows."""

    mode: Mode = "min"
    """Whether less or more of it is better."""
    missing: str = ""
    """What the recipe lacks to measure it, for example `components.syncnet`; empty if it is measured."""


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage, as far as every training has it: on how many processes, and where its report boundaries are."""

    num_workers: int = 1
    """Processes that train one trial together (the world size)."""
    num_threads: int = 1
    """CPU threads of each process; the last bits of a sum depend on it."""
    report_every_steps: int = 20
    """Validation, checkpoint and decisions come at multiples of this many of the stage's steps."""

    def complaints(self) -> Iterator[Complaint]:
        """The rules that these values break."""
        for name in ("num_workers", "num_threads", "report_every_steps"):
            if getattr(self, name) < 1:
                yield name, "must be at least 1", "raise it"


@dataclass(frozen=True, kw_only=True)
class SecondStageConfig(StageConfig):
    """Stage two."""

    num_steps: int | None = None
    """Steps from the transition to the end of the trial, the same for all; null takes what `length` leaves."""
    seed: int | None = None
    """Of what is drawn in stage two, such as the weights of new modules; null takes the recipe's `seed`."""

    def complaints(self) -> Iterator[Complaint]:
        """The rules that these values break."""
        yield from super().complaints()
        steps = self.num_steps
        if steps is not None and (steps < 1 or (self.report_every_steps >= 1 and steps % self.report_every_steps)):
            rule = f"must be a positive multiple of report_every_steps ({self.report_every_steps})"
            yield "num_steps", rule, "move it to a report boundary"
        if self.seed is not None:
            yield from seed_complaints(self.seed)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole two-stage training; a training's own class adds the sections that it needs."""

    folders: ClassVar[tuple[str, ...]] = ()
    """Dotted names of values that are folders; a relative one is below the folder of the file that names it."""
    sources: ClassVar[tuple[str, ...]] = ()
    """Dotted names of values that are a folder, a file, or the id of a model on a hub."""
    not_in_key: ClassVar[tuple[str, ...]] = ()
    """Dotted names of values on which what is trained does not depend, or whose contents have fingerprints."""
    not_in_segments: ClassVar[tuple[str, ...]] = ()
    """Settings of a stage on which its numbers do not depend: they are in no key, and the same for all trials."""
    shape_settings: ClassVar[tuple[str, ...]] = ()
    """Settings of a stage on which the shapes of its state depend: who goes on from a state must have the same."""

    transition: TransitionConfig
    """When stage one ends."""
    first_stage: StageConfig
    """Stage one, from `first_stage.yaml`."""
    second_stage: SecondStageConfig
    """Stage two, from `second_stage.yaml`."""
    length: LengthConfig | None = None
    """Of every trial as a whole, so that all cost the same; a fixed `second_stage.num_steps` comes before it."""
    divergence_factor: float | None = 10.0
    """A trial whose `val/objective` has grown to this many times its best is stopped; null lets it go on."""
    training: str = "latentsync_ray.latentsync.training:LatentSync"
    """The training: `module:Class`, or `file.py:Class` with a file relative to the recipe's folder."""
    seed: int = 0
    """Initial weights and all that is drawn in training are pure functions of it."""

    def metrics(self) -> Mapping[str, Metric]:
        """The validation metrics by name, as `Training.validate` returns them under this recipe."""
        raise UserError(f"{type(self).__name__}.metrics: must be defined, and name the training's metrics")

    @final
    def metrics_and_objective(self) -> Mapping[str, Metric]:
        """What trials can be compared by, and policies can read: `metrics`, and `val/objective`."""
        return {OBJECTIVE: Metric("min"), **self.metrics()}

    def objective(self) -> Mapping[str, float]:
        """Weights of `val/objective` by metric: what trials are compared by, whatever their own losses are.

        The framework computes it from the metrics; less of it is better.
        """
        raise UserError(f"{type(self).__name__}.objective: must be defined, and give weights to metrics")

    def complaints(self) -> Iterator[Complaint]:
        """The rules that these values break together."""
        yield from boundary_complaints(self.transition, self.first_stage.report_every_steps)
        yield from length_complaints(self, self.transition)
        if self.divergence_factor is not None and not self.divergence_factor > 1:
            yield "divergence_factor", "must be above 1", "10 is usual, null switches it off"
        for name in ("plateau", "below"):
            condition = getattr(self.transition, name)
            if condition is not None:
                for rule, remedy in metric_complaints(condition.metric, self.metrics_and_objective(), "min"):
                    yield f"transition.{name}.metric", rule, remedy
        yield from seed_complaints(self.seed)


def length_complaints(trial: TwoStages, transition: TransitionConfig) -> Iterator[Complaint]:
    """The rules of a trial's length."""
    longest = first_stage_steps(trial)
    if longest is None and trial.second_stage.num_steps is None:
        yield "length", "must be given where second_stage.num_steps is null", "give {steps: N}, or num_steps"
    elif longest is not None and longest < max(1, transition.min_step):
        least = f"first_stage.report_every_steps and transition.min_step ({transition.min_step})"
        yield "length", f"must hold {least} of stage one", "raise it"
    elif longest is not None and transition.latest_step == 0 and not second_stage_steps(trial, 0):
        yield "length", "must hold second_stage.report_every_steps", "raise it"


def boundary_complaints(transition: TransitionConfig, every: int) -> Iterator[Complaint]:
    """The rules of steps that must be boundaries of stage one, which lie `every` steps apart."""
    rule = f"must be a multiple of first_stage.report_every_steps ({every})"
    for name in ("at_step", "min_step", "max_step"):
        step = getattr(transition, name)
        if every >= 1 and step is not None and step % every:
            remedy = f"move it to {max(every, round(step / every) * every)}"
            yield f"transition.{name}", rule, remedy
    plateau = transition.plateau
    if plateau is not None and every >= 1 and plateau.patience_steps % every:
        remedy = f"move it to {max(every, round(plateau.patience_steps / every) * every)}"
        yield "transition.plateau.patience_steps", rule, remedy


def metric_complaints(
    name: str, metrics: Mapping[str, Metric], mode: Mode | None = None
) -> Iterator[tuple[str, str]]:
    """The rule that a metric's name breaks, and the remedy, if it cannot be used.

    Args:
        name: Of the metric.
        metrics: Those of the recipe.
        mode: Whether less or more of it must be better; None if either will do.
    """
    usable = [known for known, metric in metrics.items() if mode in (None, metric.mode)]
    if name not in usable:
        what = {None: "a validation metric", "min": "a validation metric of which less is better"}
        rule = what.get(mode, "a validation metric of which more is better")
        yield f"must be {rule}", "choose one of " + ", ".join(usable)
    elif metrics[name].missing:
        yield f"needs {metrics[name].missing}", "give it or choose another metric"
