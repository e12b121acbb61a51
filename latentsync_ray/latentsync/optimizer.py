"""AdamW and its learning rate, for the UNet's two stages and for SyncNet: settings, construction, state by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from latentsync_ray.config.errors import Complaint

if TYPE_CHECKING:  # a recipe is read without torch
    import torch

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of each parameter."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter 2019), with gradients clipped by their global norm."""

    lr: float = 1e-5
    """Learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and second moments."""
    eps: float = 1e-8
    """Added to the denominator."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Largest global norm of the gradients."""
    implementation: Literal["auto", "foreach", "for-loop", "fused"] = "auto"
    """torch's implementation; their results differ in the last bits. `auto`: fused on a GPU, foreach on a CPU."""

    def complaints(self) -> Iterator[Complaint]:
        """The rules that these values break."""
        for name in ("lr", "eps", "max_grad_norm"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                yield name, "must be finite and above 0", "give a positive number"
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            yield "betas", "must be two values from 0 to below 1", "the usual ones are [0.9, 0.999]"
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            yield "weight_decay", "must be finite and not negative", "0 switches it off"


@dataclass(frozen=True)
class LRSchedulerConfig:
    """Learning rate over the stage's own steps, by diffusers' get_scheduler."""

    name: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "constant"
    """Shape of the schedule."""
    num_warmup_steps: int = 0
    """Steps of linear warm-up."""
    num_training_steps: int | None = None
    """Where `linear` and `cosine` reach 0."""

    def complaints(self) -> Iterator[Complaint]:
        """The rules that these values break."""
        if self.num_warmup_steps < 0:
            yield "num_warmup_steps", "must not be negative", "0 switches it off"
        if self.name in ("linear", "cosine") and (self.num_training_steps or 0) <= self.num_warmup_steps:
            rule = f"must be above num_warmup_steps ({self.num_warmup_steps}) for a {self.name} schedule"
            yield "num_training_steps", rule, "give the step at which the learning rate reaches 0"


def build_optimizer(parameters: Iterable[torch.nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    """A new AdamW over the parameters."""
    import torch

    parameters = list(parameters)
    implementation = _implementation(config, parameters[0].device)
    return torch.optim.AdamW(
        parameters,
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        foreach=implementation == "foreach",
        fused=implementation == "fused",
    )


def _implementation(config: OptimizerConfig, device: torch.device) -> str:
    """The implementation that is taken on a device."""
    if config.implementation == "auto":
        return "fused" if device.type == "cuda" else "foreach"
    return config.implementation


def learning_rate(optimizer: OptimizerConfig, lr_scheduler: LRSchedulerConfig) -> Callable[[int], float]:
    """The learning rate as a function of the stage's step, so that nothing of the schedule has to be stored."""
    import torch
    from diffusers.optimization import get_scheduler

    probe = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    factor = get_scheduler(
        lr_scheduler.name,
        probe,
        num_warmup_steps=lr_scheduler.num_warmup_steps,
        num_training_steps=lr_scheduler.num_training_steps,
    ).lr_lambdas[0]
    return lambda step: optimizer.lr * float(factor(step))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Has the next step taken at this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def moments(
    optimizer: torch.optim.Optimizer, parameters: Iterable[tuple[str, torch.nn.Parameter]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The optimizer's tensors by name: `optimizer.<parameter>.<moment>`."""
    for name, parameter in parameters:
        for moment, value in optimizer.state.get(parameter, {}).items():
            yield f"optimizer.{name}.{moment}", value


def load_moments(
    optimizer: torch.optim.Optimizer,
    parameters: Iterable[tuple[str, torch.nn.Parameter]],
    state: Mapping[str, torch.Tensor],
    config: OptimizerConfig,
) -> None:
    """Takes over what `moments` gave; the fused implementation alone counts its steps on the parameter's device."""
    for name, parameter in parameters:
        for moment in MOMENTS:
            stored = state.get(f"optimizer.{name}.{moment}")
            if stored is not None:
                on_cpu = moment == "step" and _implementation(config, parameter.device) != "fused"
                device = "cpu" if on_cpu else parameter.device
                optimizer.state[parameter][moment] = stored.to(device, copy=True)
