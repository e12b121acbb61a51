"""What `key=value` arguments stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from latentsync_ray.config.arguments import argument_value
from latentsync_ray.config.errors import UserError
from latentsync_ray.config.recipe import Recipe
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.config.yamlfiles import read_yaml
from latentsync_ray.latentsync.syncnet.config import SyncNetConfig


@pytest.mark.parametrize(
    ("schema", "name", "text", "value"),
    [
        (SearchConfig, "storage", "/data/My Runs #2", "/data/My Runs #2"),
        (SearchConfig, "name", "0123", "0123"),
        (SearchConfig, "name", "on", "on"),
        (SearchConfig, "name", "2024-01-01", "2024-01-01"),
        (SearchConfig, "name", "null", "null"),
        (SearchConfig, "name", "a: b", "a: b"),
        (SearchConfig, "name", "", ""),
        (SearchConfig, "start_from", "0123", "0123"),
        (SearchConfig, "start_from", "null", None),
        (SearchConfig, "metric", "1e5", "1e5"),
        (SearchConfig, "trial_scheduler.name", "off", "off"),
        (SearchConfig, "start_stage", "null", None),
        (SearchConfig, "share", "off", False),
        (SearchConfig, "num_samples", "0x10", 16),
        (SearchConfig, "budget.gpu_hours", "null", None),
        (SearchConfig, "budget.gpu_hours", "1e-4", 1e-4),
        (Recipe, "data.folder", "/data/#1", "/data/#1"),
        (Recipe, "components.syncnet", "null", None),
        (Recipe, "data.synthetic", "null", None),
        (Recipe, "second_stage.trainable_modules", "[a., b.]", ["a.", "b."]),
        (Recipe, "second_stage.model.note", "2024-01-01", "2024-01-01"),
        (Recipe, "second_stage.model.flag", "on", True),
        (Recipe, "nothing.like.this", "07", 7),
        (SyncNetConfig, "output", "~/nets: new", "~/nets: new"),
    ],
)
def test_text_is_taken_as_it_is_and_the_rest_is_yaml(schema: type, name: str, text: str, value: Any) -> None:
    read = argument_value(schema, name, text, name)
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize("name", ["storage", "num_samples", "workers"])
def test_nothing_is_looked_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "a secret")
    with pytest.raises(UserError, match=rf"^argument {name}: must be written out, got .*TOKEN") as error:
        argument_value(SearchConfig, name, "${oc.env:TOKEN}", name)
    assert "a secret" not in str(error.value)


def test_files_have_the_same_rules(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("{lr: 1e-4, other: 1.5E+3, word: 'on', day: 2024-01-01, quoted: '1e-4', flag: on}")
    assert read_yaml(file) == {
        "lr": 1e-4,
        "other": 1500.0,
        "word": "on",
        "day": "2024-01-01",
        "quoted": "1e-4",
        "flag": True,
    }
