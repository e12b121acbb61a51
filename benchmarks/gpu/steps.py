"""Training steps as a worker takes them, in one way or another, measured."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.gpu.counted import Variant
from benchmarks.gpu.norms import fused_norms
from benchmarks.gpu.prototypes import Graphed, compiled_blocks
from benchmarks.gpu.sizes import Size, prepared_recipe
from latentsync_ray.engine.determinism import make_deterministic
from latentsync_ray.latentsync.batches import Batch
from latentsync_ray.latentsync.config import LatentSyncStage
from latentsync_ray.latentsync.data.clips import PreparedClips
from latentsync_ray.latentsync.models.unet import UNet3DConditionModel
from latentsync_ray.latentsync.readings import StepMetrics
from latentsync_ray.latentsync.stage import Stages, StagesSetup

Prototype = Literal["", "graph", "norms", "norms and graph", "compiled blocks"]


@dataclass(frozen=True)
class Way:
    """How steps are taken. The defaults are what a search does on a card of 80 GB."""

    strict: bool = True
    """Deterministic, new memory not filled; else as before, with `warn_only`."""
    checkpointing: bool = False
    """Whether activations are computed again."""
    fused_adamw: bool = True
    """Else foreach."""
    narrow: bool = True
    """Whether frozen weights are held in bfloat16."""
    prototype: Prototype = ""
    """What is tried besides."""
    batch_size: int | None = None
    """Another one than the recipe's."""

    @property
    def variant(self) -> Variant:
        """What is counted for it."""
        implementation = "fused" if self.fused_adamw else "foreach"
        return Variant(self.checkpointing, self.narrow, "norms" in self.prototype, implementation, self.batch_size)


BEFORE = Way(strict=False, checkpointing=True, fused_adamw=False, narrow=False)
"""Today's code with every change taken back that can be: what is left is the start of a step."""


@dataclass(frozen=True)
class Job:
    """What all rows of a run have in common."""

    size: Size
    """Sizes of the networks and pictures."""
    folder: Path
    """Networks and clips, made before."""
    device: str
    """`cuda` or `cpu`."""
    hash_steps: int
    """Steps after which weights are compared; they also warm up."""
    timed_steps: int
    """Steps that are timed."""
    overrides: tuple[str, ...] = ()
    """`key=value` arguments for the recipe."""


class BenchStages(Stages):
    """Stages whose way can be chosen, also on a CPU; new weights are drawn on the device, which takes no time."""

    way = Way()
    graphed: Graphed | None = None

    def _narrows(self, config: LatentSyncStage) -> bool:
        return self.way.narrow

    def _probe(self, stage: str, config: LatentSyncStage) -> None:
        return None

    def _new_unet(self, stage: str, config: LatentSyncStage) -> UNet3DConditionModel:
        with self.setup.device:
            torch.manual_seed(0)
            return UNet3DConditionModel(**config.model)

    def _gradients(self, batches: list[Batch], global_step: int) -> StepMetrics:
        if self.graphed is None:
            return super()._gradients(batches, global_step)
        return self.graphed.gradients(batches, global_step)


_stages: dict[Path, BenchStages] = {}
"""Of this process, whose frozen networks are loaded once."""


def stages_of(job: Job) -> BenchStages:
    """The stages on a job's networks and clips."""
    if job.folder not in _stages:
        _stages[job.folder] = _new_stages(job)
    return _stages[job.folder]


def _new_stages(job: Job) -> BenchStages:
    recipe = prepared_recipe(job.size, list(job.overrides), job.folder)
    clips = PreparedClips.open(recipe.data.folder)
    device = torch.device(job.device, 0) if job.device == "cuda" else torch.device("cpu")
    return BenchStages(
        StagesSetup(clips, recipe.components, recipe.validation, recipe.data.num_frames, recipe.seed, device)
    )


def built(job: Job, stage: str, way: Way) -> BenchStages:
    """The stages with one of them built for steps in a way."""
    make_deterministic()
    torch.use_deterministic_algorithms(True, warn_only=not way.strict)
    torch.utils.deterministic.fill_uninitialized_memory = not way.strict
    recipe, stages = prepared_recipe(job.size, list(job.overrides), job.folder), stages_of(job)
    config = getattr(recipe, stage)
    config = replace(
        config,
        gradient_checkpointing=way.checkpointing,
        optimizer=replace(config.optimizer, implementation="fused" if way.fused_adamw else "foreach"),
        batch_size=way.batch_size or config.batch_size,
    )
    stages.way = way
    stages._narrowed.clear()
    stages.build(stage, config, None, "")
    return stages


def measure(job: Job, stage: str, way: Way) -> dict[str, Any]:
    """Seconds of a step, memory, the weights' hash; of a prototype also how far its gradients are from plain ones."""
    if job.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    stages = built(job, stage, way)
    reference = _gradients(stages) if way.prototype else []
    figures: dict[str, Any] = {}
    with prototype(stages):
        if way.prototype:
            figures |= _deviation(reference, _gradients(stages))
            del reference
        started = time.perf_counter()
        _take(stages, 0, 1)
        figures["first_seconds"] = time.perf_counter() - started
        loss = _take(stages, 1, job.hash_steps - 1)["loss"]
        figures |= {"loss": loss, "weights": weights_hash(stages.unet)}
        started = time.perf_counter()
        _take(stages, job.hash_steps, job.timed_steps)
        seconds = (time.perf_counter() - started) / job.timed_steps
    batch_size = stages.config.batch_size
    figures |= {"seconds": seconds, "samples_per_second": batch_size / seconds, "batch_size": batch_size}
    if job.device == "cuda":
        figures["gib"] = torch.cuda.max_memory_allocated() / 2**30
    return figures


def repeat(job: Job, stage: str, way: Way) -> dict[str, Any]:
    """The weights' hash after the same steps, for a fresh process."""
    stages = built(job, stage, way)
    with prototype(stages):
        _take(stages, 0, job.hash_steps)
        return {"weights": weights_hash(stages.unet)}


@contextlib.contextmanager
def prototype(stages: BenchStages) -> Iterator[None]:
    """Has steps taken with the way's prototype."""
    with contextlib.ExitStack() as stack:
        if "norms" in stages.way.prototype:
            stack.enter_context(fused_norms(stages.unet, stages.objective.networks.vae))
        if stages.way.prototype == "compiled blocks":
            stack.enter_context(compiled_blocks(stages.unet))
        if "graph" in stages.way.prototype:
            stages.graphed = Graphed(stages)
            stack.callback(setattr, stages, "graphed", None)
        yield


def _take(stages: BenchStages, start: int, count: int) -> dict[str, float]:
    """Takes steps and waits for them. Returns the last one's metrics."""
    metrics: Any = {"loss": 0.0}
    for step in range(start, start + count):
        metrics = stages.step(step, step)
    stages._look()
    return dict(metrics)


def _gradients(stages: BenchStages) -> list[torch.Tensor]:
    """Copies of the gradients of step 0."""
    stages._gradients(stages.reader.batches(0), 0)
    gradients = [parameter.grad.clone() for _, parameter in stages.trainable if parameter.grad is not None]
    stages.optimizer.zero_grad(set_to_none=True)
    return gradients


def _deviation(expected: list[torch.Tensor], found: list[torch.Tensor]) -> dict[str, Any]:
    """How far gradients are from the plain ones: relative to their norm, and whether bits are equal."""
    norm = torch.stack([one.float().square().sum() for one in expected]).sum().sqrt()
    pairs = list(zip(expected, found, strict=True))
    off = torch.stack([(one.float() - other.float()).square().sum() for one, other in pairs]).sum().sqrt()
    equal = all(torch.equal(one, other) for one, other in pairs)
    return {"gradients_off": float(off / norm), "gradients_equal": equal}


def weights_hash(network: torch.nn.Module) -> str:
    """A hash of all weights' bits, from sums that a device takes exactly: integers, some weighted by place."""
    sums = []
    for parameter in network.parameters():
        bits = parameter.detach().contiguous().flatten().view(torch.uint8).to(torch.int64)
        places = torch.arange(1, len(bits) + 1, device=bits.device)
        sums += [int(bits.sum()), int((bits * places).sum())]
    return hashlib.sha256(repr(sums).encode()).hexdigest()[:16]
