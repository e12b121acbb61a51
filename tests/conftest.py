"""Fixtures that several test files share."""

import signal
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# How long an example takes says more about the machine than about the code.
settings.register_profile("patient", settings(), deadline=None)
settings.load_profile("patient")
torch.set_num_threads(1)
# A shell's background job ignores Ctrl-C, and so would every command that a test starts there and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the checkout; tests that need it are skipped without it."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("needs the reference data in ../shared, which is not here")
    return folder
