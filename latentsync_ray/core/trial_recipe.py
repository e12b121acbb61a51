"""What a trial decides by: a recipe as plain data, so that a trial's process needs no class of the training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

from latentsync_ray.config.errors import Complaint
from latentsync_ray.config.length import LengthConfig
from latentsync_ray.config.plain import Plain, Settings, settings, without
from latentsync_ray.config.recipe import (
    FIRST_STAGE,
    SECOND_STAGE,
    Recipe,
    SecondStageConfig,
    StageConfig,
    boundary_complaints,
    length_complaints,
)
from latentsync_ray.config.schema import with_values
from latentsync_ray.config.transition import TransitionConfig
from latentsync_ray.core.hashing import digest
from latentsync_ray.core.segment import NUMERICS

StageT = TypeVar("StageT", bound=StageConfig)
STAGES = (FIRST_STAGE, SECOND_STAGE)
_NOT_IN_SEGMENTS = ("report_every_steps", "num_steps")
"""Settings of a stage on which its numbers do not depend."""


@dataclass(frozen=True)
class Decisions:
    """What the framework itself knows of a recipe; every recipe has it."""

    transition: TransitionConfig
    """When stage one ends."""
    first_stage: StageConfig
    """Processes and report boundaries of stage one."""
    second_stage: SecondStageConfig
    """The same of stage two, and its length."""
    length: LengthConfig | None
    """Of the whole trial, if it is fixed."""
    divergence_factor: float | None
    """A trial whose objective has grown to this many times its best is stopped."""
    seed: int
    """Of all that is drawn."""

    def complaints(self) -> Iterator[Complaint]:
        """The rules that these values break together."""
        yield from boundary_complaints(self.transition, self.first_stage.report_every_steps)
        yield from length_complaints(self, self.transition)


@dataclass(frozen=True)
class TrialRecipe:
    """A recipe as plain data."""

    decisions: Decisions
    """What the framework knows of it."""
    stages: Mapping[str, Settings]
    """All settings of `first_stage` and `second_stage`."""
    objective: Mapping[str, float]
    """Weights of `val/objective` by metric."""
    constants: Settings
    """What else is trained by: the same for all trials of a search, and part of the root key."""
    not_in_segments: tuple[str, ...] = ()
    """Settings of a stage on which, in this training, its numbers do not depend."""

    @classmethod
    def of(cls, recipe: Recipe) -> TrialRecipe:
        """The plain form of a recipe."""
        values = without(settings(recipe), (f.name for f in fields(Decisions)))
        constants = {**without(values, recipe.not_in_key), "training": _name_of(recipe.training)}
        decisions = Decisions(
            recipe.transition,
            _base(StageConfig, recipe.first_stage),
            _base(SecondStageConfig, recipe.second_stage),
            recipe.length,
            recipe.divergence_factor,
            recipe.seed,
        )
        stages = {stage: settings(getattr(recipe, stage)) for stage in STAGES}
        return cls(decisions, stages, dict(recipe.objective()), constants, recipe.not_in_segments)

    def with_values(self, values: Mapping[str, Plain]) -> TrialRecipe:
        """The recipe with some values replaced by dotted name.

        Raises:
            UserError: The values break a rule of the framework's; a stage's own rules are checked when it is built.
        """
        decided = {name: value for name, value in _leaves(values) if self._is_decided(name)}
        decisions = with_values(self.decisions, decided, "param_space")
        stages = dict(self.stages)
        for name, value in values.items():
            stage, _, inner = name.partition(".")
            if stage in stages:
                stages[stage] = _put(stages[stage], inner.split(".") if inner else [], value)
        stages = {stage: stages[stage] | settings(getattr(decisions, stage)) for stage in STAGES}
        return replace(self, decisions=decisions, stages=stages)

    def _is_decided(self, name: str) -> bool:
        section, _, inner = name.partition(".")
        return section not in STAGES or hasattr(getattr(self.decisions, section), inner)

    def num_workers(self, stage: str) -> int:
        """World size of a stage."""
        return self._stage(stage).num_workers

    def report_every_steps(self, stage: str) -> int:
        """Steps between two report boundaries of a stage."""
        return self._stage(stage).report_every_steps

    def seed(self, stage: str) -> int:
        """Seed of what is drawn in a stage."""
        second = self.decisions.second_stage.seed
        return second if stage == SECOND_STAGE and second is not None else self.decisions.seed

    def _stage(self, stage: str) -> StageConfig:
        return self.decisions.first_stage if stage == FIRST_STAGE else self.decisions.second_stage

    def segment_settings(self, stage: str) -> Settings:
        """The settings of a stage on which its numbers depend."""
        return without(self.stages[stage], (*_NOT_IN_SEGMENTS, *self.not_in_segments))

    def root_key(self, fingerprints: Mapping[str, str], extra: Mapping[str, Plain] | None = None) -> str:
        """Key of the state before the first step.

        Args:
            fingerprints: SHA-256 of everything that the training reads, by name.
            extra: What else tells trainings apart, for example the environment or, without sharing, the trial.
        """
        return digest(
            {
                "numerics": NUMERICS,
                "seed": self.decisions.seed,
                "recipe": self.constants,
                "fingerprints": dict(fingerprints),
                "extra": dict(extra or {}),
            }
        )


def _base(schema: type[StageT], stage: StageT) -> StageT:
    """What every training's stage has of a stage."""
    return schema(**{f.name: getattr(stage, f.name) for f in fields(schema)})


def _leaves(values: Mapping[str, Plain]) -> Iterator[tuple[str, Plain]]:
    """Values by dotted name, where one may stand for a whole stage."""
    for name, value in values.items():
        if name in STAGES and isinstance(value, dict):
            yield from ((f"{name}.{inner}", item) for inner, item in value.items())
        else:
            yield name, value


def _name_of(training: str) -> str:
    """A training's name without the folder of its file, whose contents have a fingerprint."""
    module, _, name = training.rpartition(":")
    return f"{Path(module).name}:{name}"


def _put(values: Plain, path: list[str], value: Plain) -> Settings:
    """Settings with one value replaced, which takes the type of the one before; mappings are merged."""
    assert isinstance(values, dict)
    if not path:
        assert isinstance(value, dict)
        made = values
        for name, item in value.items():
            made = _put(made, [name], item)
        return made
    head, *rest = path
    before = values.get(head)
    if rest:
        return {**values, head: _put(before or {}, rest, value)}
    return {**values, head: _like(before, value)}


def _like(before: Plain, value: Plain) -> Plain:
    if isinstance(before, dict) and isinstance(value, dict):
        return _put(before, [], value)
    if isinstance(before, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(before, list) and isinstance(value, list) and len(before) == len(value):
        return [_like(old, new) for old, new in zip(before, value, strict=True)]
    return value
