"""What trials generate: the pictures that the store keeps of their last segments, to be looked at side by side."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass

from latentsync_ray.core.baselines import BASELINES, Role
from latentsync_ray.core.record import Record
from latentsync_ray.report.summary import Summary
from latentsync_ray.report.trials import TrialResult, TrialStatus
from latentsync_ray.report.words import value_text
from latentsync_ray.store import DamagedEntryError, Store

_MAX_SIDE = 1024
"""Pixels; larger pictures are made smaller, so that a page stays small."""


@dataclass(frozen=True)
class Picture:
    """What one trial generates."""

    title: str
    """Whose it is."""
    text: str
    """Its metric and where it left stage one."""
    data_uri: str
    """The PNG."""
    num_pixels: tuple[int, int]
    """Width and height."""


@dataclass(frozen=True)
class Evidence:
    """What records say of the trials that a page shows closely."""

    pictures: tuple[Picture, ...] = ()
    environment: Mapping[str, str] | None = None
    """Under which the best one's last segment was trained; None if there is no record."""


def evidence_of(store: Store, summary: Summary) -> Evidence:
    """Pictures of the best trial, the runner-up and the baselines, and the environment of the first of them."""
    pictures, environment = list[Picture](), None
    for title, trial in shown_trials(summary):
        record = _record(store, trial)
        if record is None:
            continue
        environment = environment or record.environment
        try:
            content = store.read_preview(record)
        except DamagedEntryError:
            continue  # `store verify` names it
        if content is not None:
            pictures.append(_picture(title, _text(summary, trial), content))
    return Evidence(tuple(pictures), environment)


def shown_trials(summary: Summary) -> list[tuple[str, TrialResult]]:
    """The best trial or, before one has ended, the best so far; the runner-up; the baselines."""
    sign, metric = 1 if summary.search.mode == "min" else -1, summary.search.metric
    own = [trial for trial in summary.trials if trial.role is Role.SEARCHED and metric in trial.metrics]
    own = [trial for trial in own if trial.status not in (TrialStatus.DIVERGED, TrialStatus.FAILED)]
    own.sort(
        key=lambda trial: (
            trial is not summary.best,
            trial.status != TrialStatus.FINISHED,
            sign * trial.metrics[metric],
        )
    )
    titles = ("best" if summary.best else "best so far", "runner-up")
    shown = list(zip(titles, own, strict=False))
    shown += [(str(trial.role), trial) for trial in summary.trials if trial.role in BASELINES and trial.results]
    return [(f"{title} (trial {trial.number})", trial) for title, trial in shown]


def _text(summary: Summary, trial: TrialResult) -> str:
    left = "" if trial.transition_step is None else f", transition at step {trial.transition_step}"
    return f"{summary.search.metric} {value_text(trial.metrics.get(summary.search.metric))}{left}"


def _record(store: Store, trial: TrialResult) -> Record | None:
    try:
        return None if trial.key is None else store.read_record(trial.key)
    except DamagedEntryError:
        return None  # the page is made of what is whole; `store verify` names the rest


def _picture(title: str, text: str, content: bytes) -> Picture:
    from PIL import Image

    image = Image.open(io.BytesIO(content))
    if max(image.size) > _MAX_SIDE:
        image.thumbnail((_MAX_SIDE, _MAX_SIDE))
        smaller = io.BytesIO()
        image.save(smaller, "PNG")
        content = smaller.getvalue()
    return Picture(title, text, f"data:image/png;base64,{base64.b64encode(content).decode()}", image.size)
