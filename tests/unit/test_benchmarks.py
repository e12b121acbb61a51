"""Benchmarks take long and are run seldom: here they are only kept in step with what they measure."""

from __future__ import annotations

import asyncio
import operator
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from latentsync_ray.config.domains import Choice
from latentsync_ray.config.loading import load_recipe
from latentsync_ray.config.searchfiles import load_search
from latentsync_ray.latentsync.data.clips import PreparedClips
from latentsync_ray.latentsync.stage import Stages

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.parametrize("name", sorted(file.stem for file in BENCHMARKS.glob("*.py")))
def test_it_can_be_imported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    assert import_module(name).__doc__


@pytest.mark.parametrize("method", ["ASHA", "Optuna", "PBT"])
def test_the_grid_s_values_can_be_searched(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.chdir(BENCHMARKS.parent)
    truth = import_module("truth")
    search, recipe = load_search(truth.SPACE, truth.arguments(method, 3, 1))
    assert {name: len(domain.values()) for name, domain in search.param_space.items() if name != "seed"} == {
        "transition.at_step": 5,
        "second_stage.optimizer.lr": 5,
    }
    assert recipe.seed == 1 or search.param_space["seed"] == Choice((1,))


def test_trials_walk_through_an_engine_without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    scale = import_module("scale")
    seconds = asyncio.run(scale.engine_directly(3, scale.SETTINGS))
    assert set(seconds) == {"new", "known"}


@pytest.mark.slow
def test_a_gpu_s_steps_are_measured_each_in_its_own_process(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """On a CPU and small networks, from the making of the inputs to the table."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    gpu = import_module("gpu")
    small = ["--small", "--device", "cpu", "--no-compile", "--steps", "1", "--peak-tflops", "0.001"]
    assert gpu.main([*small, "first_stage.batch_size=3"]) == 0
    head, _, *rows = [line for line in capfd.readouterr().out.splitlines() if line.startswith("|")]
    first, second = (dict(zip(head.split(" | "), line.split(" | "), strict=True)) for line in rows)
    assert first["batch"] == "3" and second["batch"] == "1"
    for cells in (first, second):
        assert 0.1 < float(cells["GiB at most"]) < 4
        share = float(cells["TFLOP a step"]) / float(cells["s a step"]) / 0.001
        assert float(cells["MFU, %"]) == pytest.approx(100 * share, rel=0.05)


def test_the_flops_of_a_step_are_those_of_one_that_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    gpu = import_module("gpu")
    recipe = gpu.make_inputs(gpu.SMALL, load_recipe(gpu.CONFIGS / "demo"), tmp_path)
    config = replace(recipe.second_stage, batch_size=2)
    training = Stages(gpu._setup(recipe, PreparedClips.open(recipe.data.folder), torch.device("cpu")))
    training.build("second_stage", config, None, "")
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        training.step(0, 0)
    checkpointed = replace(config, gradient_checkpointing=True)
    assert 2 * gpu.flops_of_sample(gpu.SMALL, recipe, checkpointed) == counter.get_total_flops() > 0


@pytest.mark.slow
def test_what_cannot_be_measured_is_told(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    gpu = import_module("gpu")
    reason = "CUDA out of memory. Tried to allocate 9.50 GiB"
    raising = f"import torch; raise torch.OutOfMemoryError('{reason}. GPU 0 has a total of 79.1 GiB.')"
    assert gpu.guarded(600, exec, raising) == gpu.NotMeasured(reason, is_fault=False)
    assert gpu.guarded(0, time.sleep, 60) == gpu.NotMeasured("not done after 0 s", is_fault=False)
    assert gpu.guarded(600, operator.truediv, 1, 0) == gpu.NotMeasured("failed, exit status 1", is_fault=True)
    assert "ZeroDivisionError" in capfd.readouterr().err
