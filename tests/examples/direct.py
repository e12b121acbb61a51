"""Drives a training by its class alone, without the engine: the trunk once, and every branch from its states."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentsync_ray.config.recipe import FIRST_STAGE, SECOND_STAGE, Recipe
from latentsync_ray.config.searchfiles import load_search
from latentsync_ray.core.training import Training, TrainingSetup, load_training

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
State = Mapping[str, Tensor] | None
Answers = dict[tuple[int, float], float]
"""Objective by threshold and rate."""


def read(name: str, seed: int = 0) -> tuple[Recipe, list[int], str, list[float]]:
    """An example's recipe, the thresholds of its grid, and name and values of the rate of stage two."""
    search, recipe = load_search(EXAMPLES / name / "search_space.yaml", [f"seed={seed}"])
    (rate,) = search.param_space.keys() - {"transition.at_step"}
    return recipe, grid(search, "transition.at_step"), rate.removeprefix("second_stage."), grid(search, rate)


def grid(search: Any, name: str) -> list[Any]:
    return list(search.param_space[name].samples())


def new(recipe: Recipe) -> Training[Any]:
    return load_training(recipe.training)(TrainingSetup(recipe, recipe.seed, torch.device("cpu")))


def trained(training: Training[Any], start: int, stop: int, stage_start: int) -> dict[str, Tensor]:
    """The state after some steps, whose memory is the caller's own."""
    for global_step in range(start, stop):
        training.step(global_step, global_step - stage_start)
    return {name: tensor.clone() for name, tensor in training.state().items()}


def answers(name: str, seed: int) -> Answers:
    """The objective of every trial of an example's search after its `length`; a threshold there means never."""
    recipe, thresholds, rate, values = read(name, seed)
    assert recipe.length is not None and recipe.length.steps is not None
    training, total = new(recipe), recipe.length.steps
    trunk: dict[int, State] = {0: None}
    training.build(FIRST_STAGE, recipe.first_stage, None, FIRST_STAGE)
    for start, stop in itertools.pairwise([*thresholds, total]):
        trunk[stop] = trained(training, start, stop, 0)
    found = {(total, 0.0): score(recipe, training)}
    for threshold in thresholds:
        for value in values:
            config = replace(recipe.second_stage, **{rate: value})
            training.build(SECOND_STAGE, config, trunk[threshold], FIRST_STAGE)
            trained(training, threshold, total, threshold)
            found[threshold, value] = score(recipe, training)
    return found


def score(recipe: Recipe, training: Training[Any]) -> float:
    metrics = training.validate()
    return sum(weight * metrics[name] for name, weight in recipe.objective().items())


def best(found: Answers, thresholds: Iterable[int]) -> float:
    return min(value for (threshold, _), value in found.items() if threshold in thresholds)


def bits(state: Mapping[str, Tensor]) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in state.items()}


def restarted(name: str, every: int) -> None:
    """Asserts that a training that is stopped at each boundary has the bits of one that is not."""
    recipe, *_ = read(name)
    whole, state, before = new(recipe), None, FIRST_STAGE
    stages = (0, FIRST_STAGE, recipe.first_stage), (2 * every, SECOND_STAGE, recipe.second_stage)
    for start, stage, config in stages:
        whole.build(stage, config, state, before)
        for place in (start, start + every):
            part = new(recipe)
            part.build(stage, config, state, before if place == start else stage)
            handed_in = None if state is None else bits(state)
            state_of_whole = trained(whole, place, place + every, start)
            end = trained(part, place, place + every, start)
            assert bits(end) == bits(state_of_whole)
            assert part.validate() == whole.validate()
            assert handed_in is None or bits(state) == handed_in  # what was handed in belongs to others
            assert all(tensor.is_contiguous() for tensor in part.state().values())
            state = end
        before = stage
