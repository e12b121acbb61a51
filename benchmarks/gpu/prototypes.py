"""Prototypes that may speed up a GPU: a stage's forward and backward pass as one CUDA graph, its blocks compiled."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from latentsync_ray.latentsync.batches import Batch
from latentsync_ray.latentsync.models.unet_blocks import MotionModule, ResnetBlock, SpatialTransformer
from latentsync_ray.latentsync.objective import weighted_sum
from latentsync_ray.latentsync.readings import StepMetrics

if TYPE_CHECKING:
    from latentsync_ray.latentsync.stage import Stages

RECOMPILE_LIMIT = 64
"""One layer class has 14 shapes in the official UNet; above torch's limit of 8 it falls back to eager in silence."""
_WARM_UP_PASSES = 3
"""Before a capture, in which libraries allocate what may not be allocated within."""


class Graphed:
    """Takes a stage's gradients by replaying one CUDA graph; on a CPU by the same calls without a graph."""

    def __init__(self, stages: Stages):
        self._stages = stages
        self._batch: Batch | None = None
        self._losses: dict[str, Tensor] = {}
        self._replay: Callable[[], None] = self._run

    def gradients(self, batches: list[Batch], global_step: int) -> StepMetrics:
        """As `Stages` takes them, for a single micro-batch."""
        (batch,) = batches
        stages = self._stages
        if self._batch is None:
            self._batch = Batch(
                {k: v.clone() for k, v in batch.inputs.items()}, batch.timesteps.clone(), batch.noise.clone()
            )
            if batch.noise.is_cuda:
                self._capture()
        _copy(self._batch, batch)
        self._replay()
        parameters = [parameter for _, parameter in stages.trainable]
        norm = torch.nn.utils.clip_grad_norm_(parameters, stages.config.optimizer.max_grad_norm)
        losses = {name: value.clone() for name, value in self._losses.items()}
        return StepMetrics(global_step + 1, losses, norm, float(stages.optimizer.param_groups[0]["lr"]))

    def _run(self) -> None:
        stages = self._stages
        assert self._batch is not None
        stages.optimizer.zero_grad(set_to_none=True)
        terms = stages.objective.terms(stages.network, self._batch, stages.config.loss)
        loss = weighted_sum(terms, stages.config.loss)
        loss.backward()
        self._losses = {name: value.detach() for name, value in {"loss": loss, **terms}.items()}

    def _capture(self) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP_PASSES):
                self._run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._run()
        # A replay writes the same gradients' memory again, so they must stay with their parameters.
        gradients = [(parameter, parameter.grad) for _, parameter in self._stages.trainable]

        def replay() -> None:
            for parameter, gradient in gradients:
                parameter.grad = gradient
            graph.replay()

        self._replay = replay


def _copy(into: Batch, batch: Batch) -> None:
    for name, tensor in batch.inputs.items():
        into.inputs[name].copy_(tensor)
    into.timesteps.copy_(batch.timesteps)
    into.noise.copy_(batch.noise)


@contextlib.contextmanager
def compiled_blocks(unet: torch.nn.Module) -> Iterator[None]:
    """Compiles the UNet's repeated layers, each class for all its places and shapes; on a CPU without a compiler."""
    import torch._dynamo as dynamo

    before = dynamo.config.recompile_limit, dynamo.config.fail_on_recompile_limit_hit
    dynamo.config.recompile_limit, dynamo.config.fail_on_recompile_limit_hit = RECOMPILE_LIMIT, True
    backend = "inductor" if next(unet.parameters()).is_cuda else "aot_eager"
    layers = [m for m in unet.modules() if isinstance(m, ResnetBlock | SpatialTransformer | MotionModule)]
    for layer in layers:
        layer.compile(dynamic=False, backend=backend)
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None
        dynamo.reset()
        dynamo.config.recompile_limit, dynamo.config.fail_on_recompile_limit_hit = before
