"""The rows of the bench, in order: part 1 measures what is built in, part 2 prototypes and what is done elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.gpu.before import step_before
from benchmarks.gpu.ceilings import ceilings
from benchmarks.gpu.counted import Variant
from benchmarks.gpu.official import official_step
from benchmarks.gpu.profiled import profile_steps
from benchmarks.gpu.sizes import STAGES
from benchmarks.gpu.steps import BEFORE, Job, Prototype, Way, measure, repeat

TOGETHER = "1 to 4 together"
CHANGES = {
    "today, 1, 2 and 4 taken back": BEFORE,
    "1: strict determinism, no filling": replace(BEFORE, strict=True),
    "2: no checkpointing": replace(BEFORE, checkpointing=False),
    "4: fused AdamW": replace(BEFORE, fused_adamw=True),
    "4: frozen weights in bfloat16": replace(BEFORE, narrow=True),
    TOGETHER: Way(),
}
"""Each change alone, and all of them; in the start of a step (3) the first row differs from commit 4810e33."""
PROTOTYPES: tuple[Prototype, ...] = ("graph", "norms", "norms and graph", "compiled blocks")
LARGER = {"first_stage": (2, 4), "second_stage": (2, 4)}
"""Times as many samples."""


@dataclass(frozen=True)
class Row:
    """One measurement."""

    name: str
    """What is measured."""
    stage: str
    """Of which stage; empty for the card itself."""
    function: Callable[..., dict[str, Any]]
    """Called in a process of its own with the job, for a row of steps also with stage and way."""
    arguments: tuple[Any, ...]
    """Its arguments."""
    limit_seconds: float
    """It is given up then."""
    variant: Variant | None = None
    """What is counted for it."""
    fresh: bool = False
    """Whether it begins in a new process, with all that follow it."""


def part_1(job: Job, small: bool) -> Iterator[Row]:
    """Ceilings, the code before, each change alone and together; hashes in a second process; profiles."""
    yield Row("the card", "", ceilings, (job.device, small), 40)
    for stage in STAGES:
        overrides = [*job.size.overrides, *job.overrides]
        arguments = (small, stage, job.device, job.timed_steps, max(1, job.hash_steps - 2), overrides, 300)
        yield Row("commit 4810e33", stage, step_before, arguments, 70, BEFORE.variant)
    for stage in STAGES:
        for name, way in CHANGES.items():
            yield Row(name, stage, measure, (job, stage, way), 40, way.variant)
    for stage in STAGES:
        yield Row(f"profile: {TOGETHER}", stage, profile_steps, (job, stage, Way()), 40)
    fresh = True
    for stage in STAGES:
        for name, way in CHANGES.items():
            if way.strict:
                yield Row(f"again: {name}", stage, repeat, (job, stage, way), 30, fresh=fresh)
                fresh = False


def part_2(job: Job, batch_sizes: dict[str, int]) -> Iterator[Row]:
    """The reference once more, prototypes, the official trainer, larger batches; hashes in a second process.

    Args:
        job: What all rows have in common.
        batch_sizes: The recipe's, by stage.
    """
    tried = [(stage, kind) for kind in PROTOTYPES for stage in STAGES]
    slow = {"compiled blocks": 90, "norms": 60}
    for stage in STAGES:
        yield Row(TOGETHER, stage, measure, (job, stage, Way()), 40, Way().variant)
    for stage, kind in tried:
        if kind == "compiled blocks":
            continue
        way = Way(prototype=kind)
        yield Row(f"prototype: {kind}", stage, measure, (job, stage, way), slow.get(kind, 45), way.variant)
    for plain in (False, True):
        name = "diffusers' UNet, the network alone in bfloat16" if plain else "like the official trainer"
        yield Row(name, "first_stage", official_step, (job, plain), 40)
    for stage in STAGES:
        for factor in LARGER[stage]:
            way = Way(batch_size=factor * batch_sizes[stage])
            yield Row(f"{factor} times the batch", stage, measure, (job, stage, way), 40, way.variant)
    for stage in STAGES:
        way = Way(prototype="compiled blocks")
        yield Row(f"prototype: {way.prototype}", stage, measure, (job, stage, way), 90, way.variant)
    for number, (stage, kind) in enumerate(tried):
        arguments = (job, stage, Way(prototype=kind))
        yield Row(f"again: prototype: {kind}", stage, repeat, arguments, slow.get(kind, 30), fresh=number == 0)
