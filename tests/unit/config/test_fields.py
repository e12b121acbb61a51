"""What `tune --fields` and `tune --show` print."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml

from latentsync_ray import tune
from latentsync_ray.config.errors import UserError
from latentsync_ray.config.fields import Field, fields_of
from latentsync_ray.config.plain import settings
from latentsync_ray.config.schema import inner_value
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.config.searchfiles import load_search
from latentsync_ray.latentsync.config import LatentSyncRecipe

ROOT = Path(__file__).resolve().parents[3]
SPACE = ROOT / "search_spaces" / "transition.yaml"


@dataclass(frozen=True)
class Inner:
    weight: float = 0.0
    """How much."""


@dataclass(frozen=True)
class Outer:
    count: int
    """How many,
    over two lines."""
    kind: Literal["a", True] = "a"
    """Which."""
    pair: tuple[float, float] = (0.9, 1e-8)
    """Two."""
    inner: Inner = field(default_factory=lambda: Inner(2.0))
    """A section whose default is not its class's."""
    maybe: Inner | None = None
    """A section that may be missing."""


@dataclass(frozen=True)
class Narrower(Outer):
    count: int = 3
    """How many; three will do."""


def test_a_field_has_its_type_default_and_docstring() -> None:
    assert list(fields_of(Outer, "at.")) == [
        Field("at.count", "whole number", "must be given", "How many, over two lines."),
        Field("at.kind", "a or true", "default a", "Which."),
        Field("at.pair", "list of 2 numbers", "default [0.9, 1.0e-08]", "Two."),
        Field("at.inner", "section", "", "A section whose default is not its class's."),
        Field("at.inner.weight", "number", "default 2.0", "How much."),
        Field("at.maybe", "section or null", "default null", "A section that may be missing."),
        Field("at.maybe.weight", "number", "default 0.0", "How much."),
    ]
    assert next(fields_of(Narrower)) == Field("count", "whole number", "default 3", "How many; three will do.")
    assert str(Field("a.b", "text", "default x", "word " * 20)) == (
        f"a.b: text; default x\n    {('word ' * 15).rstrip()}\n    {('word ' * 5).rstrip()}"
    )


@pytest.mark.parametrize("schema", [SearchConfig, LatentSyncRecipe])
def test_every_field_is_explained(schema: type) -> None:
    assert [listed.name for listed in fields_of(schema) if len(listed.text) < 4] == []


def test_the_list_is_whole_and_its_defaults_are_those_that_are_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of the smallest recipe that can be read: a length, and frozen networks, whose terms count."""
    networks = "{vae: ./v, syncnet: ./s, lpips: ./l, video_encoder: ./t}"
    (tmp_path / "recipe.yaml").write_text(
        f"transition: {{max_step: 20}}\nlength: {{steps: 40}}\ndata: {{folder: d}}\ncomponents: {networks}"
    )
    for stage in ("first_stage", "second_stage"):
        (tmp_path / f"{stage}.yaml").write_text("model: {}")
    (tmp_path / "space.yaml").write_text("recipe: .")
    search, recipe = load_search(tmp_path / "space.yaml")
    assert tune.main(["--fields"]) == 0
    listed = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines() if line[:1].islower())
    for name, value in [*leaves(settings(search)), *leaves(settings(recipe))]:
        default = listed.pop(name).partition("; default ")[2]
        if default and not name.startswith(("components.", "length.")):
            assert yaml.safe_load(default) == value, name
    unused = ("transition.plateau.", "transition.below.", "data.synthetic.", "trackers.mlflow.", "trackers.wandb.")
    assert {kind.partition(";")[0] for name, kind in listed.items() if not name.startswith(unused)} <= {
        "section",
        "section or null",
    }


def leaves(values: dict[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, dict) and value and name not in ("overrides", "model"):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def test_the_fields_of_a_training_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.main([str(ROOT / "examples" / "cooldown" / "search_space.yaml"), "--fields"]) == 0
    printed = capsys.readouterr().out
    assert "\ntotal_steps: whole number; default 800\n" in printed and "components.vae" not in printed


def test_a_search_is_shown_as_it_was_read(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "second_stage.num_steps=80",
        "name=a: b",
        "transition.below={value: 0.5}",
        "param_space.seed={grid: [1, 2]}",
        "overrides.second_stage.loss={sync: 1}",
    ]
    assert tune.main([str(SPACE), "--show", *arguments]) == 0
    printed = capsys.readouterr().out
    search, recipe = load_search(SPACE, arguments)
    shown = yaml.safe_load(printed)
    assert shown == {**settings(search), **settings(recipe)}
    places = places_of(printed)
    assert {name: place for name, place in places.items() if place == "argument"}.keys() == {
        *("name", "overrides.second_stage.loss.sync", "param_space.seed.grid"),
        *("transition.below.value", "second_stage.num_steps"),
    }
    assert {name for name, place in places.items() if place == "overrides"} == {
        "transition.plateau",
        "second_stage.loss.sync",
    }
    assert places["max_concurrent_trials"] == places["trial_scheduler.name"] == "transition.yaml"
    assert places["transition.max_step"] == places["data.synthetic.num_speakers"] == "recipe.yaml"
    assert places["second_stage.loss.trepa"] == "second_stage.yaml"
    assert places["seed"] == places["second_stage.optimizer.lr"] == "searched, here as in the recipe"
    assert places["budget.gpu_hours"] == places["transition.below.metric"] == "default"
    assert inner_value(shown, "second_stage.num_steps") == 80


def places_of(printed: str) -> dict[str, str]:
    """Dotted name -> the place that the comment behind its value names."""
    places, sections = {}, []
    for line in printed.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.strip().split(": ")[0].removesuffix(":")
        sections[depth:] = [name]
        if " # " in line:
            places[".".join(sections)] = line.rpartition(" # ")[2]
    return places


def test_a_search_needs_a_file() -> None:
    with pytest.raises(UserError, match="tune: needs a search space; name a file such as"):
        tune.main(["--show"])
