"""What a search may spend, and what it has spent over all of its calls."""

from __future__ import annotations

from dataclasses import dataclass

from latentsync_ray.config.errors import UserError
from latentsync_ray.config.search import BudgetConfig
from latentsync_ray.store import SPENT_FILE, DamagedEntryError, Store

_GIGABYTE = 1e9


@dataclass(frozen=True)
class Spent:
    """What a search has used so far, in all of its calls."""

    worker_seconds: float = 0.0
    """Time that worker processes were held."""
    wall_seconds: float = 0.0
    """Time that its engine was up."""


def exceeded(budget: BudgetConfig, spent: Spent, stored_bytes: int) -> str | None:
    """Names the first budget that is used up, with both figures; None if there is room in all."""
    used = {
        "gpu_hours": spent.worker_seconds / 3600,
        "wall_hours": spent.wall_seconds / 3600,
        "storage_gb": stored_bytes / _GIGABYTE,
    }
    for name, amount in used.items():
        limit = getattr(budget, name)
        if limit is not None and amount >= limit:
            return f"budget.{name}: {amount:.4g} of {limit:g} are used"
    return None


def read_spent(store: Store, folder: str) -> Spent:
    """What the calls of a search have used, nothing if there was none.

    Args:
        store: Where the search is kept.
        folder: The search's folder below the store's root.

    Raises:
        UserError: The file is not what was written.
    """
    try:
        return Spent(**(store.read_json(f"{folder}/{SPENT_FILE}") or {}))
    except DamagedEntryError as error:
        raise UserError(f"{error}, so what was spent is not known; delete it to begin at 0") from None
