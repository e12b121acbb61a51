"""What passes between trials, the engine and its worker groups.

Light to import: trials need neither torch nor the store, and the engine needs none of the networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TypedDict

from latentsync_ray.config.plain import Settings
from latentsync_ray.config.recipe import FIRST_STAGE, SECOND_STAGE
from latentsync_ray.config.search import BudgetConfig, WorkersConfig
from latentsync_ray.core.record import Speed, StoredState, Timings
from latentsync_ray.core.segment import Metrics, Segment
from latentsync_ray.core.trial_recipe import TrialRecipe
from latentsync_ray.engine.budget import Exceeded

# Between trials and the engine


@dataclass(frozen=True, slots=True)
class Branch:
    """Where a trial may leave stage one, and what it needs then."""

    step: int
    """global_step before which it does not."""
    num_workers: int
    """World size of its stage two."""

    @classmethod
    def ahead(cls, recipe: TrialRecipe, segment: Segment) -> Branch | None:
        """The branch ahead of a trial that asks for a segment; None in stage two."""
        if segment.stage != FIRST_STAGE:
            return None
        return cls(recipe.decisions.transition.earliest_step, recipe.num_workers(SECOND_STAGE))


@dataclass(frozen=True, slots=True)
class Finished:
    """The segment is trained."""

    metrics: Metrics
    """At its end."""
    cached: bool
    """Whether it was found or shared, rather than trained for this trial first."""
    ahead: Mapping[str, Metrics]
    """Key -> metrics of finished segments for which the trial need not ask."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The segment cannot be trained."""

    error: str
    """One line."""
    diverged: bool = False
    """Whether that was numbers that are not finite."""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """The segment is not trained, since a budget is used up."""

    by: Exceeded
    """Which."""


Answer = Finished | Failed | Unfinished


# Between the engine and its worker groups


@dataclass(frozen=True)
class GroupSetup:
    """What worker groups are started with; it is known before the clips are."""

    engine: str
    """Name of the engine's actor."""
    workers: WorkersConfig
    """How many groups there may be, and what each of their processes takes."""
    training: str
    """`module:class` of the two-stage training that takes the steps."""
    storage: str
    """Folder or URI of the store."""
    storage_retry_seconds: float
    """How long the store is tried again when it fails for a reason that passes."""
    results: str
    """Folder or URI below which Ray may write its own files."""
    preemptible: bool
    """Whether nodes may be taken away, of which a notice is looked for after every step."""


class LoopConfig(TypedDict):
    """What Ray Train hands to the loop of each worker."""

    setup: GroupSetup
    """What all groups are started with."""
    group: str
    """Name of the worker's own."""


@dataclass(frozen=True)
class EngineSetup:
    """What an engine is for."""

    groups: GroupSetup
    """What worker groups are started with; its `engine` is this actor's name."""
    keep_first_stage_from: int
    """Stage-one states from this global_step on are kept."""
    budget: BudgetConfig
    """What the search may spend."""


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker needs besides its orders, from when the inputs are ready."""

    recipe: Settings
    """The recipe as plain data, with the places of its inputs."""
    store_id: str | None = None
    """Of the store, which every node must find at its place; None where the place cannot be another one's."""
    environment: Mapping[str, str] | None = None
    """What every worker must have (`environment: strict`); None if it is only reported."""


@dataclass(frozen=True, slots=True)
class ParentState:
    """The stored state that a segment starts from."""

    stage: str
    """The stage that it belongs to."""
    sha256: str
    """Of the file."""


@dataclass(frozen=True, slots=True)
class WorkerOrder:
    """One segment to train."""

    segment: Segment
    """What to train."""
    parent: ParentState | None
    """What it starts from; None at step 0."""


@dataclass(frozen=True, slots=True)
class SegmentOutcome:
    """A segment that was trained and published, as far as the engine needs to know."""

    metrics: Metrics
    state: StoredState
    timings: Timings
    environment: Mapping[str, str]
    """What the last bits may depend on besides the segment."""
    speed: Speed = field(default_factory=Speed)


@dataclass(frozen=True, slots=True)
class Rank:
    """A process of a worker group."""

    number: int
    """Its rank."""
    node_id: str
    """Ray's id of its node."""
    pid: int
    """Its process there."""


class Fault(Enum):
    """What kind of error kept a worker from training an order."""

    ERROR = "error"
    DIVERGED = "diverged"
    """Numbers are not finite."""
    STORAGE = "storage"
    """The storage cannot be written, so nobody can be helped any more."""


@dataclass(frozen=True, slots=True)
class OrderFailure:
    """Why a rank could not train its order."""

    error: str
    """One line."""
    fault: Fault
    """What kind of error."""
    rank: int
    """Which rank says so."""
    node_id: str
    """Ray's id of its node."""
    restarting: bool
    """Whether the rank ends, so that Ray Train starts all of them again."""
    explained: bool
    """Whether it is about what the user gave, the numbers, or a stored state; otherwise the process may be broken."""
    may_be_a_peers: bool
    """Whether the error may follow from the end of another rank, as one of a collective operation does."""
    lost_parent: str | None
    """Key of the parent, if its stored state is damaged or gone."""


# From the engine to the driver


@dataclass(frozen=True, slots=True)
class StageTotals:
    """What was trained of a stage in this call of the search."""

    num_steps: int = 0
    restore_seconds: float = 0.0
    train_seconds: float = 0.0
    validate_seconds: float = 0.0
    publish_seconds: float = 0.0
    wait_seconds: float = 0.0
    newest_speed: Speed = field(default_factory=Speed)
    """Of the segment that was trained last."""

    def __add__(self, other: StageTotals) -> StageTotals:
        """Both together; the other is the newer one."""
        return StageTotals(
            self.num_steps + other.num_steps,
            self.restore_seconds + other.restore_seconds,
            self.train_seconds + other.train_seconds,
            self.validate_seconds + other.validate_seconds,
            self.publish_seconds + other.publish_seconds,
            self.wait_seconds + other.wait_seconds,
            other.newest_speed,
        )

    @property
    def seconds_per_step(self) -> float:
        """Of training and its share of validation."""
        return (self.train_seconds + self.validate_seconds) / self.num_steps


@dataclass(frozen=True, slots=True)
class InTraining:
    """A segment that a group trains now."""

    group: str
    segment: Segment
    num_waiters: int
    """How many trials wait for it."""


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What is going on, for the live view and the summary."""

    training: tuple[InTraining, ...] = ()
    num_groups: int = 0
    """Worker groups, those that start included."""
    num_starting: int = 0
    startup_seconds: float | None = None
    """Of the oldest worker group, until its workers reported; None if none has."""
    num_queued: int = 0
    """Segments that nobody trains yet."""
    num_steps_stored: int = 0
    """Of all segments that the search has come across, trained now or found."""
    trained: Mapping[str, StageTotals] = field(default_factory=dict)
    """By stage."""
    worker_seconds: float = 0.0
    """Time that worker processes were held."""
    notices: tuple[str, ...] = ()
    """What the user should know, a line each."""
    stopped_by: Exceeded | None = None
    """The budget that ends the search, once all that had begun is finished and trials have what is stored."""
