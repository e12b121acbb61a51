"""What a search may spend, and which budget is used up."""

from __future__ import annotations

from dataclasses import dataclass

from latentsync_ray.config.search import BudgetConfig

_GIGABYTE = 1e9


@dataclass(frozen=True)
class Spent:
    """What a search has used so far, in all of its calls."""

    worker_seconds: float = 0.0
    """Time that worker processes were held."""
    wall_seconds: float = 0.0
    """Time that its engine was up."""


@dataclass(frozen=True)
class Exceeded:
    """A budget that is used up."""

    budget: str
    """Its name in the section `budget`."""
    used: float
    """How much is used, in the budget's unit."""
    limit: float
    """How much may be used."""

    def __str__(self) -> str:
        """A line for the user."""
        return f"budget.{self.budget}: {self.used:.4g} of {self.limit:g} are used"

    @property
    def is_storage(self) -> bool:
        """Whether deleting states helps."""
        return self.budget == "storage_gb"


def exceeded(budget: BudgetConfig, spent: Spent, stored_bytes: int) -> Exceeded | None:
    """The first budget that is used up; None if there is room in all."""
    used = {
        "gpu_hours": spent.worker_seconds / 3600,
        "wall_hours": spent.wall_seconds / 3600,
        "storage_gb": stored_bytes / _GIGABYTE,
    }
    for name, amount in used.items():
        limit = getattr(budget, name)
        if limit is not None and amount >= limit:
            return Exceeded(name, amount, limit)
    return None
