"""The summary of a search: its trials and its totals as data, before anything is printed, drawn or written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from latentsync_ray.config.plain import Parameters, Settings, settings
from latentsync_ray.config.recipe import Recipe
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.core.forecast import Forecast
from latentsync_ray.engine.budget import Exceeded
from latentsync_ray.engine.messages import EngineStatus
from latentsync_ray.report.answer import Answer
from latentsync_ray.report.conclusion import conclude
from latentsync_ray.report.pairs import TermsOf
from latentsync_ray.report.remaining import Ends
from latentsync_ray.report.table import row
from latentsync_ray.report.trials import TrialResult, TrialStatus


@dataclass(frozen=True)
class Cloning:
    """A population-based scheduler has made a trial the clone of another one."""

    trial: int
    """Number of the trial."""
    global_step: int
    """Where it was."""
    source: int
    """Number of the trial that it is a clone of from there on."""
    source_step: int
    """global_step of the source from which it goes on."""
    key: str
    """Of the segment that ends there."""
    parameters: Parameters
    """The clone's values."""


@dataclass(frozen=True)
class Summary:
    """What a search has come to."""

    search: SearchConfig
    """What was asked."""
    trials: tuple[TrialResult, ...]
    """In the order of creation."""
    best: TrialResult | None
    """The one that stands for the best values, of those that ran to their end."""
    steps_trained: int
    """By this call of the search."""
    steps_distinct: int
    """In the union of all that trials asked for."""
    steps_without_sharing: int
    """That trials would have trained, each by itself."""
    steps_unfinished: int
    """To the ends of the trials that a budget has kept from them, at most."""
    stopped_by: Exceeded | None
    """The budget that has ended the search, if any has."""
    worker_seconds: float
    """Time that worker processes were held, in this call."""
    train_seconds: float
    """Of that, spent on training."""
    validate_seconds: float
    """Of that, spent on validation."""
    wall_seconds: float
    """Duration of this call."""
    clonings: tuple[Cloning, ...]
    """By trial and step."""
    inputs: Mapping[str, float]
    """What the training has measured of its inputs, by name."""
    notices: tuple[str, ...]
    """What the user should know, a line each."""
    answer: Answer | None = None
    """What the search has found; None as long as no trial has run to its end."""
    startup_seconds: float | None = None
    """Of the first worker group of this call; None if there was none."""
    plan: Forecast | None = None
    """What this call was expected to take; None if nothing was planned."""

    @property
    def num_by_status(self) -> dict[TrialStatus, int]:
        """How many trials have ended in each way, those with none included."""
        counts = Counter(trial.status for trial in self.trials)
        return {status: counts[status] for status in TrialStatus if status != TrialStatus.RUNNING}

    @property
    def sharing_factor(self) -> float:
        """How many times the distinct steps trials would have trained, each by itself."""
        return self.steps_without_sharing / self.steps_distinct if self.steps_distinct else 1.0

    @property
    def succeeded(self) -> bool:
        """Whether no trial has failed, and one at least has run to its end."""
        counts = self.num_by_status
        return counts[TrialStatus.FAILED] == 0 and counts[TrialStatus.FINISHED] > 0

    def to_json(self) -> Settings:
        """The values of `summary.json`; the trials have their own files."""
        return {
            "answer": None if self.answer is None else settings(self.answer),
            "best": None if self.best is None else row(self.search, self.best),
            "trials": len(self.trials),
            "trials_by_status": {str(status): count for status, count in self.num_by_status.items()},
            "steps_trained": self.steps_trained,
            "steps_distinct": self.steps_distinct,
            "steps_without_sharing": self.steps_without_sharing,
            "steps_unfinished": self.steps_unfinished,
            "stopped_by": None if self.stopped_by is None else str(self.stopped_by),
            "sharing_factor": self.sharing_factor,
            "gpu_seconds": self.worker_seconds,
            "train_seconds": self.train_seconds,
            "validate_seconds": self.validate_seconds,
            "wall_seconds": self.wall_seconds,
            "startup_seconds": self.startup_seconds,
            "plan": None if self.plan is None else settings(self.plan),
            "exploits": [settings(cloning) for cloning in self.clonings],
            "inputs": dict(self.inputs),
            "notices": list(self.notices),
        }


def summarise(
    search: SearchConfig,
    recipe: Recipe,
    trials: Iterable[TrialResult],
    status: EngineStatus,
    clonings: Sequence[Cloning],
    inputs: Mapping[str, float],
    wall_seconds: float,
    terms_of: TermsOf,
    folder: str,
    plan: Forecast | None = None,
) -> Summary:
    """Counts up what a search has come to.

    Args:
        search: What was asked.
        recipe: The recipe before a trial's own values.
        trials: What became of each trial.
        status: The engine's at the end.
        clonings: Which trial became a clone of which.
        inputs: What the training has measured of its inputs, by name.
        wall_seconds: Duration of this call.
        terms_of: The stored validation terms at the end of a segment, by its key.
        folder: Folder or URI of the results.
        plan: What this call was expected to take.
    """
    ordered = tuple(sorted(trials, key=lambda trial: trial.number))
    answer = conclude(search, recipe, ordered, terms_of, folder)
    ends = Ends(recipe)
    left = [ends.steps_left(trial) for trial in ordered if trial.status == TrialStatus.UNFINISHED]
    return Summary(
        search=search,
        trials=ordered,
        best=next((trial for trial in ordered if answer is not None and trial.number == answer.best), None),
        steps_trained=sum(totals.num_steps for totals in status.trained.values()),
        steps_distinct=sum({key: steps for trial in ordered for key, steps in trial.asked.items()}.values()),
        steps_without_sharing=sum(trial.num_steps for trial in ordered),
        steps_unfinished=sum(steps.total for steps in left),
        stopped_by=status.stopped_by,
        worker_seconds=status.worker_seconds,
        train_seconds=sum(totals.train_seconds for totals in status.trained.values()),
        validate_seconds=sum(totals.validate_seconds for totals in status.trained.values()),
        wall_seconds=wall_seconds,
        startup_seconds=status.startup_seconds,
        plan=plan,
        clonings=tuple(clonings),
        inputs=inputs,
        notices=status.notices,
        answer=answer,
    )
