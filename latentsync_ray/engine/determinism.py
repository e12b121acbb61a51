"""The same bits in every run on the same device: what torch has to be told for it."""

from __future__ import annotations

import os

import torch

_NOT_DETERMINISTIC = "does not have a deterministic implementation"
"""What torch says of an operation that it refuses."""


def make_deterministic() -> None:
    """Has torch use deterministic kernels alone, in this process, and refuse operations that have none.

    Attention's backward pass is deterministic in flash and memory-efficient kernels, and only if torch may refuse
    (`warn_only=False`); cuDNN's, which torch prefers on some GPUs, is left out.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cuda.enable_cudnn_sdp(False)
    # Every new tensor would be filled with NaN to show reads of what was never written: a sixth of a step's traffic.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def refused_operation(error: Exception) -> str | None:
    """One line for the user, if torch has refused an operation that is not deterministic; None for other errors."""
    operation, found, _ = str(error).partition(_NOT_DETERMINISTIC)
    if not isinstance(error, RuntimeError) or not found:
        return None
    return (
        f"{operation.strip()} must be deterministic, so that trials can share what is trained, and is not on this "
        "device; compute it by other operations (torch.use_deterministic_algorithms lists those to avoid)"
    )
