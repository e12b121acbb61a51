"""Strict determinism, and the line for the user where torch refuses an operation."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from latentsync_ray.engine.determinism import make_deterministic, refused_operation


@pytest.fixture
def strict() -> Iterator[None]:
    before = torch.utils.deterministic.fill_uninitialized_memory
    make_deterministic()
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cuda.enable_cudnn_sdp(True)
    torch.utils.deterministic.fill_uninitialized_memory = before


def test_a_refused_operation_is_one_line_with_the_remedy(strict: None) -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    line = refused_operation(caught.value)
    assert line is not None and "\n" not in line
    assert line.startswith("put_ must be deterministic") and line.endswith("lists those to avoid)")
    assert refused_operation(RuntimeError("shapes differ")) is None


def test_new_memory_is_not_filled(strict: None) -> None:
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    torch.full((1 << 16,), 7.0)  # freed, so that the next tensor may get its memory
    assert not torch.empty(1 << 16).isnan().all()
