"""A search on a virtual clock: the decisions of the very dispatcher that runs, groups that only let time pass."""

from __future__ import annotations

import heapq
import math
import random
from bisect import insort
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from latentsync_ray.config.length import LengthConfig
from latentsync_ray.config.recipe import FIRST_STAGE
from latentsync_ray.config.search import TrialSchedulerConfig
from latentsync_ray.core.course import Course
from latentsync_ray.core.segment import Segment
from latentsync_ray.core.trial_recipe import STAGES, TrialRecipe
from latentsync_ray.engine.decisions import (
    YIELD_SECONDS,
    DecideAgain,
    StartGroup,
    StopGroup,
    TrainOrder,
    near_steps,
)
from latentsync_ray.engine.dispatcher import Dispatcher
from latentsync_ray.engine.messages import Branch

THINK_SECONDS = 0.1
"""From a trial's answer to its next question: the way through Ray Tune."""
_LOOK_SECONDS = 1.0
"""How often the engine looks for groups without work."""

GoOn = Callable[[int, Segment], bool]
"""Whether a trial goes on after a segment, by number."""


@dataclass(frozen=True)
class PlannedTrial:
    """A trial before it runs."""

    number: int
    """Order of creation."""
    recipe: TrialRecipe
    """With the trial's own values."""
    root: str
    """Key of the state before the first step."""

    def walk(self) -> Iterator[Segment]:
        """The segments that the trial asks for; its metrics are not known."""
        return iter(self._segments)

    @cached_property
    def _segments(self) -> list[Segment]:
        course, found = Course(self.recipe, self.root), list[Segment]()
        while (segment := course.next()) is not None:
            found.append(segment if not found else segment.sharing_config(found[-1]))
            course.passed(segment, {})
        return found


@dataclass(frozen=True)
class Costs:
    """What things take, in seconds."""

    step_seconds: Mapping[str, float]
    """Stage -> one step with its share of validation, on all workers of a group together."""
    startup_seconds: float
    """From the time that a group has its GPUs until it trains."""
    idle_seconds: float
    """A group without work for so long is given back."""

    def seconds(self, segment: Segment) -> float:
        """Duration of a segment."""
        return segment.num_steps * self.step_seconds[segment.stage]

    def gpu_seconds(self, segment: Segment) -> float:
        """Duration times the GPUs that are busy."""
        return self.seconds(segment) * segment.num_workers


@dataclass
class Outcome:
    """What a simulated search took."""

    makespan_seconds: float = 0.0
    """From the start to the end of the last trial."""
    gpu_seconds: float = 0.0
    """For which GPUs were held: starting, training and idle."""
    trained: list[Segment] = field(default_factory=list)
    """In the order of their ends."""
    walked: dict[int, list[Segment]] = field(default_factory=lambda: defaultdict(list))
    """Trial -> what it was given."""


class Simulation:
    """A search from its first question to its last answer, event by event.

    It differs from the engine in three things: groups start when work waits for them, not a start-up time before;
    a state at hand saves nothing, since loading one takes no time; nothing fails.

    Args:
        trials: In the order of their creation.
        num_gpus: A group takes as many of them as it has workers.
        max_concurrent: Trials alive at once.
        keep_first_stage_from: As for the dispatcher.
        costs: Durations.
        go_on: The trial scheduler's decision.
        stored: Segments that are finished before, and whether their states are kept.
    """

    def __init__(
        self,
        trials: Sequence[PlannedTrial],
        num_gpus: int,
        max_concurrent: int,
        keep_first_stage_from: int,
        costs: Costs,
        go_on: GoOn,
        stored: Sequence[tuple[Segment, bool]] = (),
    ):
        sizes = {trial.recipe.num_workers(stage) for trial in trials for stage in STAGES}
        self._dispatcher = Dispatcher(num_gpus // min(sizes), keep_first_stage_from, costs.idle_seconds)
        self._groups = self._dispatcher.assignment.groups
        for segment, is_kept in stored:
            self._dispatcher.add_done(segment, is_kept)
        self._mixed = len(sizes) > 1
        self._unborn = deque(trials)
        self._max_concurrent = max_concurrent
        self._costs, self._go_on = costs, go_on
        self._near_steps = near_steps(costs.idle_seconds, costs.startup_seconds, costs.step_seconds[FIRST_STAGE])
        self._walks: dict[int, Iterator[Segment]] = {}
        self._recipes = {trial.number: trial.recipe for trial in trials}
        self._waiting: defaultdict[str, list[int]] = defaultdict(list)
        self._free_gpus = num_gpus
        self._unplaced: list[str] = []
        self._placed_at: dict[str, float] = {}
        self._dispatch_due = False
        self._now, self._num_events = 0.0, 0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._outcome = Outcome()

    def run(self) -> Outcome:
        """Lets everything happen, in its order."""
        for _ in range(min(self._max_concurrent, len(self._unborn))):
            self._begin()
        while self._walks:
            self._now, _, happens, arguments = heapq.heappop(self._events)
            happens(*arguments)
        self._outcome.makespan_seconds = self._now
        for name in list(self._placed_at):
            self._give_back(name)
        return self._outcome

    def _after(self, seconds: float, happens: Callable[..., None], *arguments: Any) -> None:
        self._num_events += 1
        heapq.heappush(self._events, (self._now + seconds, self._num_events, happens, arguments))

    # Trials

    def _begin(self) -> None:
        trial = self._unborn.popleft()
        self._dispatcher.add_root(trial.root)
        self._walks[trial.number] = trial.walk()
        self._after(0.0, self._ask, trial.number)

    def _ask(self, trial: int) -> None:
        segment = next(self._walks[trial], None)
        if segment is None:
            self._end(trial)
        elif segment.key in self._dispatcher.states.done:
            self._answer(trial, segment)
        else:
            self._dispatcher.ask(segment, str(trial), Branch.ahead(self._recipes[trial], segment))
            self._waiting[segment.key].append(trial)
            self._dispatch()

    def _answer(self, trial: int, segment: Segment) -> None:
        unneeded = self._dispatcher.give(segment, str(trial))
        self._dispatcher.drop(unneeded)
        self._outcome.walked[trial].append(segment)
        self._dispatch()
        self._after(THINK_SECONDS, self._after_answer, trial, segment)

    def _after_answer(self, trial: int, segment: Segment) -> None:
        self._ask(trial) if self._go_on(trial, segment) else self._end(trial)

    def _end(self, trial: int) -> None:
        del self._walks[trial]
        self._dispatcher.end_trial(str(trial))
        self._dispatch()
        if self._unborn:
            self._begin()

    # Groups

    def _dispatch(self, check_idle: bool = False) -> None:
        """Carries out what the dispatcher decides, as the engine does; then groups that wait for GPUs get them."""
        check_idle = check_idle or self._mixed
        for decision in self._dispatcher.decide(self._now, True, check_idle, self._near_steps):
            match decision:
                case TrainOrder(group, order):
                    self._after(self._costs.seconds(order.segment), self._finish, group)
                case StartGroup(group):
                    self._unplaced.append(group)
                case StopGroup(group):
                    self._give_back(group)
                    self._after(0.0, self._dispatch)  # there may be room for another one
                case DecideAgain(seconds) if not self._dispatch_due:
                    self._dispatch_due = True
                    self._after(seconds, self._dispatch_again)
        self._place()

    def _dispatch_again(self) -> None:
        self._dispatch_due = False
        self._dispatch()

    def _place(self) -> None:
        """Groups that wait for GPUs get them, the one that has waited longest first."""
        for name in list(self._unplaced):
            num_workers = self._groups[name].num_workers
            if num_workers <= self._free_gpus:
                self._unplaced.remove(name)
                self._free_gpus -= num_workers
                self._placed_at[name] = self._now
                self._after(self._costs.startup_seconds, self._come_up, name)

    def _come_up(self, name: str) -> None:
        if name in self._placed_at:  # otherwise it was in the way while it started
            self._dispatcher.assignment.up(name, self._now)
            self._become_free(name)

    def _become_free(self, name: str) -> None:
        self._dispatch()
        self._after(self._costs.idle_seconds, self._stop_if_idle, name, self._now)
        if self._mixed:
            self._after(YIELD_SECONDS + THINK_SECONDS, self._dispatch)

    def _finish(self, name: str) -> None:
        segment = self._dispatcher.finish(name, self._now).segment
        self._outcome.trained.append(segment)
        self._become_free(name)
        for trial in self._waiting.pop(segment.key, ()):
            self._answer(trial, segment)

    def _stop_if_idle(self, name: str, since: float) -> None:
        group = self._groups.get(name)
        if group is not None and group.order is None and group.free_since == since:
            self._dispatch(check_idle=True)
            if name in self._placed_at:  # a branch is about to open
                self._after(_LOOK_SECONDS, self._stop_if_idle, name, since)

    def _give_back(self, name: str) -> None:
        num_workers = self._groups[name].num_workers
        self._dispatcher.end_group(name, "not needed", self._now)
        if name in self._placed_at:
            self._free_gpus += num_workers
            self._outcome.gpu_seconds += (self._now - self._placed_at.pop(name)) * num_workers
        else:
            self._unplaced.remove(name)


class RandomRungs:
    """The rule of ASHA's rungs (Li et al. 2020) as Ray Tune applies it, over numbers drawn for each segment.

    A trial is stopped at a rung if it is worse than the best `1 / reduction_factor` of those that came before it. How
    trials compare is not known before they run, so that what this stops is one possible course of many.

    Args:
        settings: Where the rungs are, and how many pass.
        longest: Where trials end by themselves.
        length: What steps of each stage cost; None if all cost the same.
        seed: Of the draws.
    """

    def __init__(self, settings: TrialSchedulerConfig, longest: float, length: LengthConfig | None, seed: int):
        self._settings, self._seed = settings, seed
        self._weights = length if length is not None and settings.time_attr == "cost" else LengthConfig(steps=1)
        self._times: dict[int, float] = {}
        self._rungs: list[tuple[float, set[int], list[float]]] = [
            (rung, set(), []) for rung in reversed(settings.rungs(longest))
        ]

    def _time(self, segment: Segment) -> float:
        done = segment.second_stage_step
        if self._settings.time_attr == "second_stage_step":
            return done
        first = segment.end_step - done
        return self._weights.first_stage * first + self._weights.second_stage * done

    def __call__(self, trial: int, segment: Segment) -> bool:
        """Whether the trial goes on."""
        judged = segment.second_stage_step >= self._settings.second_stage_grace
        before, now = self._times.get(trial, 0.0), self._time(segment)
        self._times[trial] = now
        for rung, seen, values in self._rungs:
            if judged and before < rung <= now and trial not in seen:
                seen.add(trial)
                return self.passes(segment, values)
        return True

    def passes(self, segment: Segment, values: list[float]) -> bool:
        """Whether a trial passes a rung, whose sorted values so far grow by its own."""
        value = random.Random(f"{self._seed} {segment.key}").random()
        passes = not values or value >= _quantile(values, 1 - 1 / self._settings.reduction_factor)
        insort(values, value)
        return passes


def _quantile(values: Sequence[float], share: float) -> float:
    """Between the sorted values, interpolated."""
    place = share * (len(values) - 1)
    below = values[math.floor(place)]
    return below + (values[math.ceil(place)] - below) * (place - math.floor(place))
