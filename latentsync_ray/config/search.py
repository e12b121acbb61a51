"""Typed configuration of a search: what is explored, how it decides, and what it may use."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from latentsync_ray.config.domains import Choice, Domain, Grid, Uniform
from latentsync_ray.config.errors import Complaint
from latentsync_ray.config.plain import NOT_PLAIN
from latentsync_ray.config.recipe import OBJECTIVE
from latentsync_ray.config.trackers import TrackersConfig

PAUSING_SCHEDULERS = ("hyperband", "pbt", "pb2")
"""Trial schedulers that pause trials."""
POPULATION_SCHEDULERS = ("pbt", "pb2")
"""Trial schedulers that make worse trials clones of better ones."""


@dataclass(frozen=True)
class TrialSchedulerConfig:
    """Ray Tune's trial scheduler."""

    name: Literal["fifo", "asha", "hyperband", "pbt", "pb2"] = "asha"
    """fifo runs every trial to its end; asha (Li et al. 2020) stops the worse ones early; hyperband (Li et al. 2018)
    does so in cohorts that wait for each other; pbt (Jaderberg et al. 2017) makes worse trials clones of better
    ones with perturbed values; pb2 (Parker-Holder et al. 2020) chooses these values by a Gaussian process."""
    time_attr: Literal["global_step", "second_stage_step", "cost"] = "second_stage_step"
    """What rungs and intervals count; `cost` is that of `length`, with which trials are compared at equal cost."""
    grace_period: int = 10
    """asha: no trial is stopped before, on the scale of `time_attr`."""
    second_stage_grace: int = 1
    """asha, hyperband, pbt, pb2: no trial is judged before it has so many steps of stage two behind it."""
    reduction_factor: float = 3
    """asha, hyperband: of so many trials at a rung one goes on."""
    rung_interval: int | None = None
    """asha: rungs follow each other at this distance; null has each at `reduction_factor` times the one before. Where
    thresholds are searched and rungs count `cost`, the distance between thresholds has every trial judged as soon as
    it has `second_stage_grace`."""
    promote: bool = False
    """asha: a trial is not stopped at a rung but paused, and goes on when it is later among the best there."""
    perturbation_interval: int = 10
    """pbt, pb2: trials are compared so often."""
    quantile_fraction: float = 0.25
    """pbt, pb2: this share of the trials, the worst, become clones of as many of the best."""
    resample_probability: float = 0.25
    """pbt: how often a value is drawn anew instead of perturbed."""

    def complaints(self) -> Iterator[Complaint]:
        """The rules that these values break."""
        for name in ("grace_period", "second_stage_grace", "perturbation_interval"):
            if getattr(self, name) < 1:
                yield name, "must be at least 1", "raise it"
        if not (math.isfinite(self.reduction_factor) and self.reduction_factor > 1):
            yield "reduction_factor", "must be finite and above 1", "the usual values are 2 to 4"
        if self.promote and self.name != "asha":
            yield "promote", f"must be false with {self.name}", "only asha promotes"
        if self.rung_interval is not None and self.name != "asha":
            yield "rung_interval", f"must be null with {self.name}", "only asha has rungs of its own"
        if self.rung_interval is not None and self.rung_interval < 1:
            yield "rung_interval", "must be at least 1", "raise it, or give null"
        if not 0 < self.quantile_fraction <= 0.5:
            yield "quantile_fraction", "must be above 0 and at most 0.5", "0.25 is usual"
        if not 0 <= self.resample_probability <= 1:
            yield "resample_probability", "must be from 0 to 1", "0.25 is usual"

    def rungs(self, longest: float) -> list[float]:
        """asha: where trials are compared, lowest first.

        Args:
            longest: Where the longest trial ends.
        """
        found: list[float] = []
        rung = float(self.grace_period)
        while rung <= longest:
            found.append(rung)
            rung = rung * self.reduction_factor if self.rung_interval is None else rung + self.rung_interval
        return found


@dataclass(frozen=True)
class WorkersConfig:
    """The worker groups that the engine may start."""

    max_groups: int = 2
    """Most groups at once; each trains one segment at a time."""
    num_cpus: float = 1
    """CPUs that each worker process reserves."""
    use_gpu: bool = False
    """One GPU for each worker process."""
    idle_seconds: float = 20
    """A group without work for so long is given back."""
    stall_minutes: float = 10
    """A group that has not moved for so long, and for 20 of its usual steps, is ended; another one tries."""

    def complaints(self) -> Iterator[Complaint]:
        """The rules that these values break."""
        if self.max_groups < 1:
            yield "max_groups", "must be at least 1", "raise it"
        if not (math.isfinite(self.num_cpus) and self.num_cpus > 0):
            yield "num_cpus", "must be finite and above 0", "give a positive number"
        if not self.stall_minutes > 0:
            yield "stall_minutes", "must be above 0", "raise it"
        if not self.idle_seconds >= 0:
            yield "idle_seconds", "must not be negative", "raise it"


@dataclass(frozen=True)
class BudgetConfig:
    """What a search may spend; null sets no limit.

    At a limit segments in flight are finished and nothing new is begun. The same command with a higher limit goes on
    from there, so a budget is no part of what tells searches apart.
    """

    gpu_hours: float | None = None
    """Hours that worker processes are held, one GPU each (on CPUs too), over all calls of the search."""
    wall_hours: float | None = None
    """Hours by the clock that the search has run, over all of its calls."""
    storage_gb: float | None = None
    """Gigabytes (10^9 bytes) of states below `storage`, those of all searches that use it together."""

    def complaints(self) -> Iterator[Complaint]:
        """The rules that these values break."""
        for name in ("gpu_hours", "wall_hours", "storage_gb"):
            limit = getattr(self, name)
            if limit is not None and not (math.isfinite(limit) and limit > 0):
                yield name, "must be finite and above 0", "null sets no limit"


@dataclass(frozen=True)
class TrialsConfig:
    """What is added to a search when it has ended."""

    extend: int = 0
    """Lengthens finished trials by so many steps of stage two. It is the same search: what was decided before stays,
    trials that were stopped stay so, and the scheduler decides anew from the old end on."""

    def complaints(self) -> Iterator[Complaint]:
        """The rules that these values break."""
        if self.extend < 0:
            yield "extend", "must not be negative", "0 adds nothing"


@dataclass(frozen=True)
class ConfirmConfig:
    """Trains the best trials again under other draws, so that the answer rests on means."""

    top: int = 0
    """How many of the best; 0 confirms none."""
    seeds: int = 3
    """How often each is trained again."""
    whole: bool = False
    """Whether stage one is trained again too (other `seed`s), or stage two alone (other `second_stage.seed`s)."""

    def complaints(self) -> Iterator[Complaint]:
        """The rules that these values break."""
        if self.top < 0:
            yield "top", "must not be negative", "0 confirms none"
        if self.seeds < 1:
            yield "seeds", "must be at least 1", "raise it"


SEEDS = ("seed", "second_stage.seed")
"""Values of a recipe that change draws and nothing else."""
_THRESHOLD = "transition.at_step"
_LONGEST_NAME = 200
"""Bytes of a search's name: a folder's name may have 255 on most filesystems, and a hash is added."""


@dataclass(frozen=True)
class SearchConfig:
    """What a search explores, how it decides, and where it keeps what it trained."""

    recipe: str
    """Folder of the recipe; relative to the file that names it."""
    name: str
    """Name of the search; the file's stem unless it is given."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Values of the recipe that hold for all trials, by dotted name."""
    param_space: dict[str, Domain] = field(default_factory=dict)
    """Dotted name of a recipe value -> one of {grid: [...]}, {choice: [...]}, {uniform: [low, high]},
    {loguniform: [low, high]}, {randint: [low, high]}; sorted by name, so that the order in a file decides nothing."""
    num_samples: int = 1
    """Draws from the space; every draw goes through the whole grid."""
    sampling_seed: int = 0
    """Seed of the draws."""
    search_alg: Literal["random", "maximin", "optuna"] = "random"
    """random draws from the space and goes through its grids; maximin draws from choices, each combination once and
    as far as possible from those before; optuna (Akiba et al. 2019) draws where trials did well, from ranges and
    choices."""
    start_from: str | None = None
    """Key of a stored segment, or its beginning, from which all trials go on; null begins at step 0."""
    start_stage: Literal["second_stage"] | None = None
    """second_stage leaves stage one there; null leaves that to the transition policy."""
    trials: TrialsConfig = field(default_factory=TrialsConfig)
    """What is added to trials after their end."""
    baselines: bool = True
    """Trains what the best trial is compared with: never leaving stage one, leaving at the first threshold, and the
    recipe with its own transition. Where trials share, they cost little."""
    confirm: ConfirmConfig = field(default_factory=ConfirmConfig)
    """What is trained again when the search has ended."""
    metric: str = OBJECTIVE
    """Validation metric by which trials are compared."""
    mode: Literal["min", "max"] = "min"
    """Whether less or more of it is better."""
    trial_scheduler: TrialSchedulerConfig = field(default_factory=TrialSchedulerConfig)
    """Which trials go on."""
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    """Where segments are trained."""
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    """Where the search stops before its end, to be continued."""
    trackers: TrackersConfig = field(default_factory=TrackersConfig)
    """Experiment trackers that runs are reported to; they are no part of what tells searches apart."""
    max_concurrent_trials: int = 16
    """Trials alive at once; each is a process of about 200 MB that only decides. Does not hold for schedulers that
    pause trials."""
    storage: str = "results"
    """Folder or URI (s3://bucket/prefix, gs://, file://) of the store and of the results; a folder is relative to the
    working directory."""
    storage_retry_minutes: float = 5.0
    """How long a storage may fail for a reason that passes, such as a server that is away, before the search ends."""
    share: bool = True
    """false trains every trial from the start by itself, for comparison."""
    given: tuple[str, ...] = field(default=(), compare=False, metadata=NOT_PLAIN)
    """Set where a search is read: its file and the `key=value` arguments, from which further commands are made."""
    environment: Literal["reported", "strict"] = "reported"
    """strict reuses only what was trained with the same library versions, device and CPU instruction set."""

    @property
    def num_trials(self) -> int:
        """How many trials there will be in all."""
        grids = (domain for domain in self.param_space.values() if isinstance(domain, Grid))
        return self.num_samples * math.prod(len(grid.listed) for grid in grids)

    def complaints(self) -> Iterator[Complaint]:
        """The rules that these values break."""
        if self.storage_retry_minutes < 0:
            yield "storage_retry_minutes", "must be at least 0", "raise it"
        for name in ("num_samples", "max_concurrent_trials"):
            if getattr(self, name) < 1:
                yield name, "must be at least 1", "raise it"
        if self.search_alg == "optuna":
            yield from self._optuna_complaints()
        if self.search_alg == "maximin":
            yield from self._maximin_complaints()
        if self.trial_scheduler.name in POPULATION_SCHEDULERS:
            yield from self._population_complaints()
        if self.start_from is not None and not self.share:
            yield "start_from", "needs share, since its segments were trained once for all", "leave either out"
        if self.confirm.top and any(name in self.param_space for name in SEEDS):
            yield "confirm.top", "must be 0 where param_space names a seed", "remove either"
        if self.confirm.top and self.trial_scheduler.name in POPULATION_SCHEDULERS:
            rule = f"must be 0 with {self.trial_scheduler.name}, whose trials change their values on the way"
            yield "confirm.top", rule, "search their last values without it"
        if self.start_stage is not None and self.start_from is None:
            yield "start_stage", "needs start_from", "name a segment, or leave it out"
        if self.trials.extend and "second_stage.num_steps" in self.param_space:
            yield "trials.extend", "must be 0, since param_space names second_stage.num_steps", "raise those values"
        if self.trials.extend and self.trial_scheduler.name == "hyperband":
            yield "trials.extend", "must be 0 with hyperband, whose cohorts depend on the length", "use asha"
        if not self.name or "/" in self.name or self.name.startswith(".") or not self.name.isprintable():
            yield "name", "must be a plain folder name", "leave out slashes, leading dots and what is not printable"
        elif len(self.name.encode()) > _LONGEST_NAME:
            yield "name", f"must have at most {_LONGEST_NAME} bytes, as the name of a folder", "shorten it"
        for section, name in itertools.combinations(sorted(self.param_space), 2):
            if name.startswith(f"{section}."):
                yield f"param_space.{name}", f"must not be within another parameter ({section})", "remove either"

    def _optuna_complaints(self) -> Iterator[Complaint]:
        if not self.param_space:
            yield "search_alg", "must be random where param_space is empty", "name what optuna is to search"
        if any(isinstance(domain, Grid) for domain in self.param_space.values()):
            yield "search_alg", "must be random where param_space has a grid", "make it a choice"

    def _maximin_complaints(self) -> Iterator[Complaint]:
        choices = [domain for domain in self.param_space.values() if isinstance(domain, Choice)]
        most = math.prod(len(choice.listed) for choice in choices)
        if not choices or len(choices) < len(self.param_space):
            yield "search_alg", "must be random or optuna where param_space has more than choices", "list the values"
        elif self.num_samples > most:
            yield "num_samples", f"must not be above the number of combinations ({most}) with maximin", "lower it"

    def _population_complaints(self) -> Iterator[Complaint]:
        name = self.trial_scheduler.name
        if self.search_alg != "random":
            yield "search_alg", f"must be random with {name}", "it perturbs the values itself"
        if not self.param_space:
            yield "param_space", f"must not be empty with {name}", "name what is perturbed"
        if "seed" in self.param_space:
            rule = f"must not be searched with {name}, whose clones go on under their source's"
            yield "param_space.seed", rule, "remove it"
        if self.start_from and _THRESHOLD in self.param_space:
            yield f"param_space.{_THRESHOLD}", "must not be searched with start_from by a population", "remove it"
        if name == "pb2" and not all(isinstance(domain, Uniform) for domain in self.param_space.values()):
            yield "param_space", "must have uniform ranges only with pb2", "give {uniform: [low, high]}, or use pbt"
