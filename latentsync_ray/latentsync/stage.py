"""LatentSync's two stages on prepared clips; `training.LatentSync` gives them to the framework."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from latentsync_ray.config.errors import UserError
from latentsync_ray.config.plain import plain
from latentsync_ray.core.terms import Terms
from latentsync_ray.core.training import Notes, StepWork
from latentsync_ray.latentsync.batches import Batch, BatchPlan, BatchReader, Samples, derived_seed, used_inputs
from latentsync_ray.latentsync.checkpointing import Checkpointing
from latentsync_ray.latentsync.config import ComponentsConfig, LatentSyncStage, ValidationConfig
from latentsync_ray.latentsync.flops import peak_flops
from latentsync_ray.latentsync.models.interop import read_weights
from latentsync_ray.latentsync.models.unet import UNet3DConditionModel, select_trainable, warm_start
from latentsync_ray.latentsync.networks import FrozenNetworks, narrow_frozen_layers
from latentsync_ray.latentsync.objective import Objective, weighted_sum
from latentsync_ray.latentsync.optimizer import (
    build_optimizer,
    learning_rate,
    load_moments,
    moments,
    set_learning_rate,
)
from latentsync_ray.latentsync.probe import Probed
from latentsync_ray.latentsync.readings import StepMetrics, mean_over_ranks
from latentsync_ray.latentsync.validation import Validation


@dataclass(frozen=True)
class StagesSetup:
    """What stays the same for all segments that a worker trains."""

    samples: Samples
    """Prepared clips."""
    components: ComponentsConfig
    """The frozen networks."""
    validation: ValidationConfig
    """The fixed validation."""
    num_frames: int
    """Frames of a sample."""
    seed: int
    """Of the initial weights, samples, timesteps and noise."""
    device: torch.device
    """Where this worker computes."""
    rank: int = 0
    """This worker's number."""
    world_size: int = 1
    """Number of workers."""


SCALER_STATE = ("scale", "_growth_tracker")
"""What of a GradScaler changes as it goes."""


class Stages:
    """LatentSync's two stages: the reconstruction loss alone, then all losses on decoded frames (see `Objective`)."""

    unet: UNet3DConditionModel
    optimizer: torch.optim.AdamW

    def __init__(self, setup: StagesSetup):
        self.setup = setup
        self.networks = FrozenNetworks.load(setup.components, setup.device)
        self.reader = BatchReader(setup.samples, setup.device)
        self.validation = Validation(setup.validation, setup.samples, setup.num_frames, setup.rank, setup.world_size)
        common = [plain(setup.components), setup.num_frames]
        self.checkpointing = Checkpointing(setup.device, setup.world_size, common)
        self._narrowed: dict[torch.dtype, FrozenNetworks] = {}
        self._unread: StepMetrics | None = None
        self._terms: Terms | None = None

    def rehearse(self, stages: Mapping[str, LatentSyncStage], notes: Notes) -> list[str]:
        """Finds out how stages fit on a GPU, before anything is trained; see `Training.rehearse`."""
        self.checkpointing.notes = notes
        found = [self._probe(stage, config) for stage, config in stages.items()]
        return [probed.line for probed in found if probed is not None]

    def build(
        self, stage: str, config: LatentSyncStage, state: Mapping[str, Tensor] | None, state_stage: str
    ) -> None:
        """Builds UNet, optimizer and LR schedule; see `Training.build`."""
        setup, self.config, self._unread = self.setup, config, None
        probed = self._probe(stage, config)
        self._num_flops = None if probed is None else probed.step.num_flops
        checkpoints = config.gradient_checkpointing is True if probed is None else probed.checkpointing

        self.unet = self._new_unet(stage, config)
        start = setup.components.unet
        if state is None and start is not None:
            weights = read_weights(start)
        else:
            weights = {name[len("model.") :]: t for name, t in (state or {}).items() if name.startswith("model.")}
        resumed = state if stage == state_stage else None
        if resumed is not None:
            self.unet.load_state_dict(weights)
        elif weights:
            warm_start(self.unet, weights)
        self.unet.to(setup.device).train()

        self.trainable = select_trainable(self.unet, config.trainable_modules)
        parameters = [parameter for _, parameter in self.trainable]
        self.ema = EMAModel(parameters, decay=config.ema_decay) if config.ema_decay > 0 else None
        self.optimizer = build_optimizer(parameters, config.optimizer)
        self.scaler = torch.amp.GradScaler(setup.device.type, enabled=config.dtype == "float16")
        if resumed is not None:
            self._resume(resumed)
        self.learning_rate = learning_rate(config.optimizer, config.lr_scheduler)
        self.objective = self._objective(config, checkpoints)
        self.judging = Objective(self.networks, setup.device, self.objective.dtype, judging=True)
        self._wide = narrow_frozen_layers(self.unet, self.objective.dtype) if self._narrows(config) else {}
        if checkpoints:
            self.unet.enable_gradient_checkpointing()
        self.reader.follow(self._plan(config))

        self.network: torch.nn.Module = self.unet
        if config.compile:
            self.network = cast(torch.nn.Module, torch.compile(self.unet))
        if setup.world_size > 1:
            # Looking for unused parameters keeps the gradient buckets as they are at first; else the second step
            # sums in another order than the first, and a restart would show in the last bits.
            self.network = DistributedDataParallel(self.network, find_unused_parameters=True)

    def _new_unet(self, stage: str, config: LatentSyncStage) -> UNet3DConditionModel:
        """New weights (all at step 0, the motion modules later), which depend on the seed and the stage alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(self.setup.seed, "initial weights", stage))
            unet: UNet3DConditionModel = UNet3DConditionModel(**config.model)
            return unet

    def step(self, global_step: int, stage_step: int) -> StepMetrics:
        """One step of AdamW on this rank's share of the global batch; see `Training.step`.

        In float16 a step whose gradients overflow is taken again with a smaller loss scale, so that a skipped step
        advances neither global_step nor the LR schedule. On a GPU a step is looked at when the next one is under way,
        or before its state is; nothing that follows a step with numbers that are not finite leaves this object.

        Raises:
            FloatingPointError: A loss term or the gradient norm is not finite; names the step and which.
        """
        set_learning_rate(self.optimizer, self.learning_rate(stage_step))
        batches = self.reader.batches(global_step)
        metrics = self._gradients(batches, global_step)
        while self.scaler.is_enabled() and self._overflown(metrics):
            self.scaler.step(self.optimizer)  # skips the optimizer
            self.scaler.update()
            metrics = self._gradients(batches, global_step)
        if self.setup.device.type == "cpu" or self.scaler.is_enabled():
            metrics.check()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.optimization_step = stage_step
            self.ema.step([parameter for _, parameter in self.trainable])
        self._look()
        self._unread = metrics
        return metrics

    def _gradients(self, batches: list[Batch], global_step: int) -> StepMetrics:
        """Leaves the clipped gradients of this rank's share with the parameters. Returns what was measured."""
        config, world_size = self.config, self.setup.world_size
        self.optimizer.zero_grad(set_to_none=True)
        losses: dict[str, Tensor] = {}
        for number, batch in enumerate(batches, 1):
            with self._synchronized(number == len(batches)):
                terms = self.objective.terms(self.network, batch, config.loss)
                loss = weighted_sum(terms, config.loss)
                self.scaler.scale(loss / len(batches)).backward()  # type: ignore[no-untyped-call]
            for name, value in {"loss": loss, **terms}.items():
                losses[name] = losses.get(name, 0) + value.detach() / len(batches)
        self.scaler.unscale_(self.optimizer)
        parameters = [parameter for _, parameter in self.trainable]
        grad_norm = torch.nn.utils.clip_grad_norm_(parameters, config.optimizer.max_grad_norm)
        means = mean_over_ranks(losses, world_size)
        lr = float(self.optimizer.param_groups[0]["lr"])
        return StepMetrics(global_step + 1, {name: means[name] for name in losses}, grad_norm, lr)

    def _overflown(self, metrics: StepMetrics) -> bool:
        """Whether a step has to be taken again with a smaller loss scale."""
        metrics.check_losses()
        return not metrics.has_finite_gradients() and self.scaler.get_scale() > 1

    def _synchronized(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """Ranks exchange gradients in the last micro-batch's backward pass alone."""
        if isinstance(self.network, DistributedDataParallel) and not is_last:
            return cast(contextlib.AbstractContextManager[None], self.network.no_sync())
        return contextlib.nullcontext()

    def validate(self) -> dict[str, float]:
        """Every loss term at fixed timesteps and noise on held-out clips; see `Training.validate`."""
        self._look()
        with self._evaluating():
            self._terms = self.validation.measure(self.unet, self.judging)
        return self._terms.means()

    def validation_terms(self) -> Terms | None:
        """What the last validation has averaged; see `Training.validation_terms`."""
        return self._terms

    def preview(self) -> Tensor:
        """A picture of what the UNet makes; see `Validation.preview`."""
        with self._evaluating():
            return self.validation.preview(self.unet, self.judging)

    def work(self) -> StepWork:
        """Samples and FLOPs of a step; see `Training.work`."""
        config, world_size = self.config, self.setup.world_size
        peak = peak_flops(self.setup.device, self.objective.dtype)
        flops = self._num_flops and self._num_flops * config.gradient_accumulation_steps * world_size
        return StepWork(config.batch_size, flops, peak and peak * world_size)

    def state(self) -> dict[str, Tensor]:
        """Weights by name, and the optimizer's moments by parameter name; see `Training.state`.

        With an average, `model.*` is the average, and `trained.*` what goes on being trained.
        """
        self._look()
        tensors = {f"model.{name}": tensor for name, tensor in (self.unet.state_dict() | self._wide).items()}
        if self.ema is not None:
            tensors |= {f"trained.{name}": parameter for name, parameter in self.trainable}
            for (name, _), average in zip(self.trainable, self.ema.shadow_params, strict=True):
                tensors[f"model.{name}"] = average
        tensors |= dict(moments(self.optimizer, self.trainable))
        if self.scaler.is_enabled():
            values = self.scaler.state_dict()
            tensors |= {f"scaler.{name}": torch.tensor(values[name]) for name in SCALER_STATE}
        return {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}

    @torch.no_grad()
    def _resume(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a state of the same stage, whose `model.*` is in the UNet already."""
        for name, parameter in self.trainable:
            if f"trained.{name}" in state:  # then `model.*` is their average
                parameter.copy_(state[f"trained.{name}"])
        load_moments(self.optimizer, self.trainable, state, self.config.optimizer)
        if self.scaler.is_enabled():
            values = {name: state[f"scaler.{name}"].item() for name in SCALER_STATE}
            self.scaler.load_state_dict(self.scaler.state_dict() | values)

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """The UNet in eval mode, with the average of its weights if one is kept."""
        parameters = [parameter for _, parameter in self.trainable]
        self.unet.eval()
        if self.ema is not None:
            self.ema.store(parameters)
            self.ema.copy_to(parameters)
        try:
            yield
        finally:
            if self.ema is not None:
                self.ema.restore(parameters)
            self.unet.train()

    def _look(self) -> None:
        """Looks at the last step that nobody has looked at."""
        if self._unread is not None:
            self._unread.check()
            self._unread = None

    def _probe(self, stage: str, config: LatentSyncStage) -> Probed | None:
        """Whether a stage fits on the GPU, and how; None on a CPU."""
        return self.checkpointing.of(
            stage,
            config,
            lambda checkpointing: self._objective(config, checkpointing),
            lambda: self.reader.first(self._plan(config)),
        )

    def _objective(self, config: LatentSyncStage, checkpointing: bool) -> Objective:
        """The loss terms of a stage."""
        dtype = getattr(torch, config.dtype)
        networks = self.networks
        if self._narrows(config) and config.loss.of_pixels:
            if dtype not in self._narrowed:
                self._narrowed[dtype] = networks.narrowed(dtype)
            networks = self._narrowed[dtype]
        networks.set_checkpointing(checkpointing)
        return Objective(networks, self.setup.device, dtype, checkpointing=checkpointing)

    def _narrows(self, config: LatentSyncStage) -> bool:
        """Whether frozen weights are held in the type of autocast too: more memory, which a GPU has to spare."""
        return self.setup.device.type == "cuda" and config.dtype != "float32"

    def _plan(self, config: LatentSyncStage) -> BatchPlan:
        """Which batches this rank takes."""
        setup = self.setup
        share = config.batch_size // setup.world_size
        return BatchPlan(
            setup.seed,
            setup.num_frames,
            range(setup.rank * share, (setup.rank + 1) * share),
            share // config.gradient_accumulation_steps,
            used_inputs(config.loss),
            config.mixed_noise_alpha,
        )


def check_stage(config: LatentSyncStage, start: str | None) -> None:
    """Builds a stage's UNet without memory, to find out whether that can be done.

    Args:
        config: The stage's settings.
        start: Weights that it is to start from (`components.unet`), if it is the one to start.

    Raises:
        TypeError, ValueError, LookupError, ArithmeticError, RuntimeError: It cannot.
        UserError: The weights do not fit it.
    """
    with torch.device("meta"):
        unet = UNet3DConditionModel(**config.model)
    select_trainable(unet, config.trainable_modules)
    if start is not None:
        weights = read_weights(start, "meta")
        try:
            warm_start(unet, weights)
        except ValueError as error:
            raise UserError(
                f"components.unet: {start} must fit the UNet of the stage that starts: {error}; name a checkpoint"
                " of such a UNet, or change `model` in the stage's file"
            ) from None
