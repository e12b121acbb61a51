"""The values of a search space."""

from __future__ import annotations

import random
from typing import Any

import pytest

from latentsync_ray.config.domains import KINDS, Choice, Domain, Grid, LogUniform, RandInt, Uniform, read_domain

DOMAINS: list[tuple[Domain, tuple[Any, Any] | None, list[Any], list[Any]]] = [
    (Grid((8, 24, 16)), (8, 24), [8, 24], [9, "8", None]),
    (Choice((None, 20, 10)), (10, 20), [None, 20], [15]),
    (Choice(("a", [1, 2])), None, ["a", [1, 2]], [1]),
    (Uniform(0.5, 2.0), (0.5, 2.0), [0.5, 1, 2.0], [0.4, 2.1, "1", True]),
    (LogUniform(1e-5, 1e-3), (1e-5, 1e-3), [1e-4], [1e-2]),
    (RandInt(3, 6), (3, 5), [3, 5], [6, 4.5, True]),
]


@pytest.mark.parametrize(("domain", "extremes", "inside", "outside"), DOMAINS, ids=lambda value: str(value))
def test_a_domain_knows_its_values(
    domain: Domain, extremes: tuple[Any, Any] | None, inside: list[Any], outside: list[Any]
) -> None:
    assert domain.extremes() == extremes
    assert all(domain.contains(value) for value in inside)
    assert not any(domain.contains(value) for value in outside)
    assert all(domain.contains(value) for value in domain.samples())
    rng = random.Random(0)
    assert all(domain.contains(domain.sample(rng)) for _ in range(100))
    assert read_domain(domain.as_dict(), "here") == domain


@pytest.mark.parametrize(
    ("domain", "value", "clipped"),
    [
        (Uniform(0.5, 2.0), 2.4, 2.0),
        (LogUniform(1e-5, 1e-3), 8e-6, 1e-5),
        (RandInt(3, 6), 7, 5),
        (RandInt(3, 6), 4, 4),
        (Grid((1, 2)), 7, 7),
    ],
)
def test_what_is_perturbed_is_brought_back(domain: Domain, value: float, clipped: float) -> None:
    assert domain.clip(value) == clipped


def test_kinds_are_those_of_search_spaces() -> None:
    assert list(KINDS) == ["grid", "choice", "uniform", "loguniform", "randint"]
