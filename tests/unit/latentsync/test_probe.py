"""What a probe decides from what it measures; the measuring itself, but for a GPU's memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from latentsync_ray.config.errors import UserError
from latentsync_ray.config.loading import load_recipe
from latentsync_ray.latentsync import checkpointing
from latentsync_ray.latentsync.batches import Batch
from latentsync_ray.latentsync.checkpointing import Checkpointing
from latentsync_ray.latentsync.config import LatentSyncRecipe
from latentsync_ray.latentsync.flops import named_peak_flops
from latentsync_ray.latentsync.networks import FrozenNetworks
from latentsync_ray.latentsync.objective import Objective
from latentsync_ray.latentsync.probe import MeasuredStep, Probed, decide, measure_step

GIB = 2**30
FREE = 80 * GIB


def probed(asked: Any, without: float | None, having: float | None) -> tuple[Probed, list[bool]]:
    """What is decided where steps take so many GiB (None: too much), and what was measured for it."""
    tried = []

    def measure(on: bool) -> MeasuredStep | None:
        tried.append(on)
        gib = having if on else without
        return None if gib is None else MeasuredStep(0.5, int(gib * GIB), 1e12)

    return decide("second_stage", asked, measure, FREE), tried


@pytest.mark.parametrize(
    ("asked", "without", "having", "decided", "tried", "line"),
    [
        ("auto", 28, 5, False, [False], "0.50 s and 28.0 of 80.0 GiB without gradient checkpointing, so it is off"),
        ("auto", 71.9, 5, False, [False], "so it is off"),
        ("auto", 72.1, 5, True, [False, True], "does not fit without (72.1 GiB)"),
        ("auto", None, 5, True, [False, True], "0.50 s and 5.0 of 80.0 GiB with gradient checkpointing"),
        (True, 28, 5, True, [True], "as asked"),
        (False, 79, 5, False, [False], "with little memory to spare"),
    ],
)
def test_checkpointing_is_on_where_a_step_does_not_fit_without(
    asked: Any, without: float | None, having: float, decided: bool, tried: list[bool], line: str
) -> None:
    found, measured = probed(asked, without, having)
    assert (found.checkpointing, measured) == (decided, tried)
    assert found.line.startswith("second_stage: a step takes 0.50 s") and line in found.line


@pytest.mark.parametrize("asked", ["auto", True, False])
def test_a_stage_that_does_not_fit_is_told_before_anything_is_trained(asked: Any) -> None:
    with pytest.raises(UserError, match=r"second_stage.batch_size: .*80.0 GiB do not suffice.*; lower it"):
        probed(asked, None, None)


@dataclass
class KeptNotes:
    """Notes of a store."""

    files: dict[str, Any]

    def read_json(self, name: str) -> Any:
        return self.files.get(name)

    def write_json(self, name: str, values: Any) -> None:
        self.files[name] = values


@pytest.fixture
def recipe() -> LatentSyncRecipe:
    loaded = load_recipe(Path(__file__).resolve().parents[3] / "configs" / "demo")
    assert isinstance(loaded, LatentSyncRecipe)
    return loaded


def test_a_gpu_is_probed_once_for_all_workers_and_settings_of_equal_memory(
    recipe: LatentSyncRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def measure(config: Any, objective: Any, batch: Any, on: bool, world_size: int) -> MeasuredStep | None:
        measured.append((config.batch_size, on))
        return MeasuredStep(1.0, GIB, 1e9) if on else None

    monkeypatch.setattr(checkpointing, "measure_step", measure)
    monkeypatch.setattr(checkpointing, "free_bytes", lambda device: FREE)
    device = SimpleNamespace(name="H100", total_memory=FREE)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: device)
    notes, stage = KeptNotes({}), recipe.second_stage
    for _ in range(2):  # two workers
        one = Checkpointing(torch.device("cuda"), 1, None)
        one.notes = notes
        for config in (stage, replace(stage, loss=replace(stage.loss, sync=0.7)), replace(stage, batch_size=2)):
            found = one.of("second_stage", config, lambda on: None, lambda: None)  # type: ignore[arg-type,return-value]
            assert found is not None and found.checkpointing
    assert measured == [(1, False), (1, True), (2, False), (2, True)]
    cpu = Checkpointing(torch.device("cpu"), 1, None)
    assert cpu.of("second_stage", stage, lambda on: None, lambda: None) is None  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_flops_are_the_model_s_with_checkpointing_too(recipe: LatentSyncRecipe, dtype: str) -> None:
    config = replace(recipe.second_stage, dtype=dtype)
    device = torch.device("cpu")
    networks = FrozenNetworks.load(recipe.components, device)
    shape = (1, 4, recipe.data.num_frames, 8, 8)
    inputs = {name: torch.randn(shape) for name in ("latents", "masked_latents", "ref_latents")}
    inputs |= {"masks": torch.ones(1, 1, *shape[2:]), "audio_features": torch.randn(1, shape[2], 50, 32)}
    inputs |= {"mel": torch.randn(1, 1, 80, 26), "frames": torch.zeros(1, 3, shape[2], 64, 64, dtype=torch.uint8)}
    batch = Batch(inputs, torch.tensor([500]), torch.randn(shape))
    flops = []
    for on in (False, True):
        networks.set_checkpointing(on)
        objective = Objective(networks, device, getattr(torch, dtype), checkpointing=on)
        step = measure_step(config, objective, batch, on, 1)
        assert step is not None and step.seconds > 0
        flops.append(step.num_flops)
    assert flops[0] == flops[1] > 1e9


def test_the_peak_is_known_by_the_device_s_name() -> None:
    assert named_peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert named_peak_flops("NVIDIA H100 PCIe") == 756e12
    assert named_peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert named_peak_flops("NVIDIA L40S") == 362e12
    assert named_peak_flops("Some Card") is None
