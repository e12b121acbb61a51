"""A search made by hand, with its stored terms: thresholds and learning rates on six speakers of two clips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from latentsync_ray.core.baselines import Role
from latentsync_ray.core.terms import Terms
from latentsync_ray.report.trials import Boundary, TrialResult, TrialStatus

WEIGHTS = {"val/recon": 1.0, "val/sync": 0.05, "val/lpips": 0.1, "val/trepa": 10.0}
LENGTH, EVERY = 680, 40


@dataclass
class Made:
    """Trials and the terms at their ends."""

    num_speakers: int = 6
    noise: float = 0.008
    trials: list[TrialResult] = field(default_factory=list)
    terms: dict[str, Terms] = field(default_factory=dict)

    def add(
        self,
        config: Mapping[str, Any],
        step: int | None,
        value: float,
        status: TrialStatus = TrialStatus.FINISHED,
        role: Role = Role.SEARCHED,
    ) -> TrialResult:
        """A trial that leaves stage one at a step (None for never), and ends with this value of the objective."""
        number = len(self.trials)
        random = np.random.default_rng(number)
        clips = [f"{speaker}/{clip}" for speaker in range(self.num_speakers) for clip in (0, 1) for _ in (0, 1)]
        speakers = [clip.split("/")[0] for clip in clips]
        difficulty = np.exp(np.random.default_rng(99).normal(0, 0.25, len(clips)))
        objective = difficulty * (1 + self.noise * random.normal(size=len(clips)))
        objective *= value / objective.mean()
        # All four terms matter: each is a quarter of the objective.
        values = {name: (objective / 4 / weight).tolist() for name, weight in WEIGHTS.items()}
        key = f"end{number}"
        self.terms[key] = Terms(clips, speakers, values)
        metrics = self.terms[key].means()
        metrics["val/objective"] = float(objective.mean())
        ends = range(EVERY, (LENGTH if step is None else step) + 1, EVERY)
        results = [Boundary(f"trunk{end}", "", "first_stage", end, 0, curve(end)) for end in ends]
        if step is None:
            results[-1] = Boundary(key, "", "first_stage", LENGTH, 0, metrics, True)
        else:
            results.append(Boundary(key, "", "second_stage", LENGTH, LENGTH - step, metrics, True))
        made = TrialResult(number, dict(config), tuple(results), status, role=role)
        self.trials.append(made)
        return made

    def terms_of(self, key: str) -> Terms | None:
        """As of a store."""
        return self.terms.get(key)


def curve(step: int) -> dict[str, float]:
    """The metrics of stage one: they fall until step 320, and stay."""
    value = 0.16 + 0.1 * max(0, 320 - step) / 320
    return {"val/objective": value, "val/recon": value / 4}


def grid(num_speakers: int = 6, never: float = 0.17, shipped: float = 0.1535) -> Made:
    """Four thresholds and four learning rates, of which 400 and 2e-4 are the best, with all three baselines."""
    made = Made(num_speakers)
    for step, worse in ((280, 1.05), (400, 1.0), (520, 1.002), (640, 1.06)):
        for rate, by in ((2.5e-5, 1.05), (1e-4, 1.003), (2e-4, 1.0), (3.2e-3, 4.0)):
            status = TrialStatus.DIVERGED if by > 2 else TrialStatus.FINISHED
            made.add({"transition.at_step": step, "second_stage.optimizer.lr": rate}, step, 0.15 * worse * by, status)
    made.add({}, None, never, role=Role.NEVER)
    made.add({"transition.at_step": 280}, 280, 0.158, role=Role.FIRST)
    made.add({}, 480, shipped, role=Role.SHIPPED)
    return made
