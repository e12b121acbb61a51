"""What the last bits of a result may depend on, besides its settings."""

from __future__ import annotations

import platform

import torch


def environment() -> dict[str, str]:
    """What the last bits of a result may depend on, besides the segment."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
