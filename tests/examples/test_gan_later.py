"""The example of an adversarial loss that comes later: exact restarts, and what its search finds."""

from __future__ import annotations

import pytest
from direct import answers, best, restarted


def test_a_restart_changes_no_bit() -> None:
    restarted("gan_later", every=20)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_loss_that_comes_later_is_better_than_none_and_than_one_from_the_start(seed: int) -> None:
    found = answers("gan_later", seed)
    later, at_once, never = best(found, (120, 240)), best(found, (0,)), best(found, (360,))
    assert later < min(at_once, never), found
