"""The bench of a GPU's steps: its prototypes against the plain networks, its processes, and all of it on a CPU."""

from __future__ import annotations

import json
import operator
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu import bench
from benchmarks.gpu.counted import Variant, count_step
from benchmarks.gpu.process import RowError, RowProcess
from benchmarks.gpu.profiled import busy_figures
from benchmarks.gpu.sizes import SMALL, STAGES, make_inputs, recipe_of
from benchmarks.gpu.steps import Job, Prototype, Way, built, measure

ROOT = Path(__file__).resolve().parents[2]
IN_FLOAT32 = tuple(f"{stage}.dtype=float32" for stage in STAGES)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("inputs")
    make_inputs(SMALL, recipe_of(SMALL, []), folder)
    return Job(SMALL, folder, "cpu", hash_steps=1, timed_steps=1)


@pytest.fixture(autouse=True)
def plain_torch() -> None:
    """What rows change in their own process is put back in this one."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.backends.cuda.enable_cudnn_sdp(True)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", ["graph", "norms"])
def test_a_prototype_takes_the_plain_network_s_steps(
    kind: Prototype, stage: str, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, where rounding hides nothing."""
    plain = recipe_of(SMALL, [])
    narrowest = {name: replace(getattr(plain, name), dtype="float32") for name in STAGES}
    monkeypatch.setattr("benchmarks.gpu.sizes.recipe_of", lambda size, arguments: replace(plain, **narrowest))
    figures = measure(job, stage, Way(prototype=kind, narrow=False))
    assert figures["gradients_equal"] if kind == "graph" else figures["gradients_off"] < 1e-4


def test_flops_are_counted_as_torch_counts_them_on_a_step_that_is_taken(job: Job) -> None:
    stages = built(job, "second_stage", Way())
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        stages._gradients(stages.reader.batches(0), 0)
    found = count_step(SMALL, recipe_of(SMALL, []), "second_stage", Variant(checkpointing=True))
    # In the count attention's backward pass is one kernel, which computes the scores again: one of five products.
    again = found.costs["backward", "attention"].flops / 5
    assert found.model_flops - again == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert found.total.flops > 1.1 * found.model_flops


def test_a_row_that_fails_costs_itself_alone() -> None:
    process = RowProcess()
    assert process.call(600, operator.add, 1, 2) == 3
    with pytest.raises(RowError, match="ZeroDivisionError: division by zero"):
        process.call(600, operator.truediv, 1, 0)
    with pytest.raises(RowError, match="exit status 7"):
        process.call(600, os._exit, 7)
    with pytest.raises(RowError, match="not done after 0 s"):
        process.call(0, time.sleep, 60)
    assert process.call(600, operator.add, 1, 2) == 3
    process.close()


def test_a_gpu_is_busy_while_any_kernel_runs() -> None:
    kernels = [(0.0, 10.0), (5.0, 20.0), (22.0, 30.0), (60.0, 100.0)]
    found = busy_figures(kernels)
    assert found == {"launches": 4, "busy_share": pytest.approx(0.68), "gaps": 1, "gap_share": pytest.approx(0.3)}
    assert busy_figures([])["busy_share"] is None


def test_norms_of_the_prototype_are_those_of_a_float64_reference() -> None:
    """The kernels themselves, by Triton's interpreter, which is chosen when Triton is imported."""
    pytest.importorskip("triton")
    script = ROOT / "tests" / "unit" / "triton_norm_check.py"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, str(script)], env=environment, check=True)


@pytest.mark.slow
@pytest.mark.soak
def test_the_whole_bench_runs_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.jsonl"
    for part in ("1", "2"):
        arguments = [part, "--small", "--device", "cpu", "--out", str(out)]
        assert bench.main([*arguments, "--seconds", "1200"]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert all("error" not in line for line in lines)
    told = capsys.readouterr().out
    again = [line for line in told.splitlines() if line.startswith("|") and "again:" in line]
    assert len(again) == 12 and all("equal bits" in line for line in again)
    for line in lines:
        if line["row"] == "prototype: graph":
            assert line["gradients_equal"]
    steps = [line for line in lines if "weights" in line and not line["row"].startswith("again")]
    assert len(steps) == 12 + 2 + 8 + 4 and all(line["seconds"] > 0 for line in steps)
