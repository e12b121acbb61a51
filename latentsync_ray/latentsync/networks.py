"""The frozen networks of a training: the autoencoder, and what the pixel losses look through."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from latentsync_ray.latentsync.config import ComponentsConfig
from latentsync_ray.latentsync.losses import LPIPS, TREPALoss
from latentsync_ray.latentsync.models.autoencoder import load_autoencoder
from latentsync_ray.latentsync.models.pretrained import load_pretrained
from latentsync_ray.latentsync.syncnet.model import StableSyncNet

_AUTOCAST_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Layers that autocast computes in the narrower type, casting their weights in every call."""
_NETWORK_OF = {"sync": "syncnet", "lpips": "lpips", "trepa": "trepa"}
"""Loss term -> the network that it looks through."""


@dataclass(frozen=True)
class FrozenNetworks:
    """Networks without gradients to their weights, in eval mode; None where the recipe names none."""

    vae: Any
    """AutoencoderKL or AutoencoderTiny."""
    syncnet: StableSyncNet | None = None
    """For the sync loss."""
    lpips: LPIPS | None = None
    """For the perceptual loss."""
    trepa: TREPALoss | None = None
    """For the loss on the video encoder's features."""

    @classmethod
    def load(cls, components: ComponentsConfig, device: torch.device) -> FrozenNetworks:
        """Loads what a recipe names, in float32."""
        networks = cls(
            vae=_frozen(load_autoencoder(components.vae), device),
            syncnet=_frozen_from(partial(load_pretrained, StableSyncNet), components.syncnet, device),
            lpips=_frozen_from(partial(load_pretrained, LPIPS), components.lpips, device),
            trepa=_frozen_from(TREPALoss.from_pretrained, components.video_encoder, device),
        )
        for convolutional in (networks.vae, networks.lpips):
            if convolutional is not None:
                convolutional.to(memory_format=torch.channels_last)  # a quarter faster at 256 pixels
        return networks

    def can_compute(self, term: str) -> bool:
        """Whether the network that a loss term looks through is there."""
        return term == "recon" or getattr(self, _NETWORK_OF[term]) is not None

    def set_checkpointing(self, enabled: bool) -> None:
        """Has the autoencoder keep activations for the backward pass, or compute them again."""
        if enabled:
            self.vae.enable_gradient_checkpointing()
        else:
            self.vae.disable_gradient_checkpointing()

    def narrowed(self, dtype: torch.dtype) -> FrozenNetworks:
        """Copies for training under autocast, which hold the weights of layers in its type and share all else.

        They compute the same bits: autocast would cast the same weights in every call.
        """
        own = (self.vae, self.syncnet, self.lpips, self.trepa)
        return FrozenNetworks(*(None if network is None else _narrowed(network, dtype) for network in own))


def narrow_frozen_layers(network: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Has a network hold the weights of its frozen layers in the type in which autocast computes them.

    Args:
        network: Its parameters that need no gradient are narrowed in place.
        dtype: Of autocast.

    Returns:
        The weights as they were, by name, on the CPU.
    """
    before = {}
    for name, parameter in _layer_parameters(network):
        if not parameter.requires_grad:
            before[name] = parameter.detach().to("cpu", copy=True)
            parameter.data = parameter.data.to(dtype)
    return before


def _narrowed(network: nn.Module, dtype: torch.dtype) -> Any:
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    for _, parameter in _layer_parameters(network):
        memo[id(parameter)] = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
    return copy.deepcopy(network, memo)


def _layer_parameters(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for prefix, module in network.named_modules():
        if isinstance(module, _AUTOCAST_LAYERS):
            yield from module.named_parameters(prefix, recurse=False)


def _frozen(module: nn.Module, device: torch.device) -> Any:
    return module.to(device).eval().requires_grad_(False)


def _frozen_from(load: Callable[[str], nn.Module], source: str | None, device: torch.device) -> Any:
    """A frozen network from a folder or hub id, or None if the recipe names none."""
    return None if source is None else _frozen(load(source), device)
