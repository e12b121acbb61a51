"""Ray Tune's population-based schedulers with a journal of their exploits."""

from __future__ import annotations

import random
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ray.tune import Checkpoint
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

from latentsync_ray.cluster.ray_internals import OpenPopulation, schedule_save, set_checkpoint
from latentsync_ray.config.recipe import SECOND_STAGE
from latentsync_ray.core.hashing import digest
from latentsync_ray.search.entries import Decision, Exploit
from latentsync_ray.search.journal import Journal
from latentsync_ray.search.pointer import POINTER_FILE, Pointer
from latentsync_ray.search.reported import Reported, TuneResult
from latentsync_ray.search.trial import parameters, trial_name, trial_number

_THRESHOLD = "transition.at_step"
Hold = Callable[[str, str], None]
"""Asks for the state of a segment to be kept for a trial: its name and the segment's key."""


class _JournaledExploits(OpenPopulation):
    """Adds a journal to a population-based scheduler of Ray Tune, which is the next class in line.

    A checkpoint is a trial's pointer, so an exploit copies no weights. Which trial is cloned and what is perturbed
    is drawn from a generator seeded by the place at which it happens, not by what was drawn before.
    """

    def __init__(self, journal: Journal, hold: Hold, seed: int, second_stage_grace: int, **settings: Any):
        super().__init__(**settings)
        self._journal, self._hold, self._seed = journal, hold, seed
        self._second_stage_grace = second_stage_grace
        self._generations: Counter[int] = Counter()
        self._made: Exploit | None = None

    def on_trial_result(self, tune_controller: Any, trial: Any, result: TuneResult) -> str:
        """What was decided before, or what the scheduler decides now."""
        number, reported = trial_number(trial.trial_id, trial.config), Reported.from_result(result)
        if reported.second_stage_step < self._second_stage_grace:
            return str(TrialScheduler.CONTINUE)
        generation, global_step = self._generations[number], reported.global_step
        values = parameters(trial.config)
        known = self._journal.lookup(number, generation, global_step, values)
        if known is not None:
            return self._decide_again(tune_controller, trial, result, known)
        self._made = None
        seed = int(digest([self._seed, number, generation, global_step])[:8], 16)
        random.seed(seed)
        np.random.seed(seed)
        decision = str(super().on_trial_result(tune_controller, trial, result))  # type: ignore[misc]
        self._journal.write(Decision(number, generation, global_step, values, decision, self._made))
        if self._made is not None:
            self._generations[number] += 1
        return decision

    def _decide_again(self, tune_controller: Any, trial: Any, result: TuneResult, known: Decision) -> str:
        """Makes a journaled decision, and leaves the scheduler as if it had been its own."""
        state, exploit = self.state_of(trial), known.exploit
        is_compared = self.notes_result(trial, result)
        if exploit is None:
            if is_compared:  # any trial may be the one that is cloned when decisions are new again
                state.last_checkpoint = schedule_save(tune_controller, trial, result)
            return str(TrialScheduler.CONTINUE)
        self._generations[known.trial] += 1
        self._hold(trial_name(trial.trial_id, trial.config), exploit.key)
        tune_controller.pause_trial(trial, should_checkpoint=False)
        trial.set_config({**trial.config, **exploit.parameters})
        set_checkpoint(trial, _write_checkpoint(trial.storage, exploit.pointer), result)
        state.last_checkpoint = None
        state.last_train_time, state.last_perturbation_time = exploit.last_train_time, exploit.last_perturbation_time
        return str(TrialScheduler.NOOP)

    def exploited(self, trial: Any, source: Any) -> None:
        """Notes what is needed to clone the better trial again."""
        pointer = _read_checkpoint(self.state_of(source).last_checkpoint)
        reached = pointer.last
        assert reached is not None, "a trial that has reported nothing was cloned"
        # The source may move on before the clone asks for what follows.
        self._hold(trial_name(trial.trial_id, trial.config), reached.key)
        if reached.stage == SECOND_STAGE and _THRESHOLD in trial.config:
            # The clone has left stage one where its source did, whatever was drawn for it.
            trial.set_config({**trial.config, _THRESHOLD: reached.stage_start_step})
        state = self.state_of(trial)
        self._made = Exploit(
            source=trial_number(source.trial_id, source.config),
            key=reached.key,
            parameters=parameters(trial.config),
            pointer=pointer,
            last_train_time=state.last_train_time,
            last_perturbation_time=state.last_perturbation_time,
        )


class JournaledPBT(_JournaledExploits, PopulationBasedTraining):  # type: ignore[misc]
    """Population based training (Jaderberg et al. 2017), Ray Tune's, with a journal."""


def journaled_pb2() -> Any:
    """Population based bandits (Parker-Holder et al. 2020), Ray Tune's, with a journal."""
    from ray.tune.schedulers.pb2 import PB2  # scikit-learn takes seconds, and may not be there

    return type("JournaledPB2", (_JournaledExploits, PB2), {})


def _read_checkpoint(checkpoint: Checkpoint) -> Pointer:
    with checkpoint.as_directory() as folder:
        return Pointer.from_text((Path(folder) / POINTER_FILE).read_text(encoding="utf-8"))


def _write_checkpoint(storage: Any, pointer: Pointer) -> Checkpoint:
    """A checkpoint beside the trial's own, where every node finds it."""
    filesystem, folder = storage.storage_filesystem, f"{storage.trial_fs_path}/replayed-{uuid.uuid4().hex}"
    filesystem.create_dir(folder, recursive=True)
    with filesystem.open_output_stream(f"{folder}/{POINTER_FILE}") as stream:
        stream.write(pointer.to_text().encode())
    return Checkpoint(path=folder, filesystem=filesystem)
