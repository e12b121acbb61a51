"""Short names of parameters, values and trials."""

import pytest

from latentsync_ray.report.names import short_names, values_name
from latentsync_ray.report.words import value_text

LR = "second_stage.optimizer.lr"


def test_a_short_name_is_the_shortest_ending_that_tells_names_apart() -> None:
    assert short_names(["transition.at_step", LR]) == {"transition.at_step": "at_step", LR: "lr"}
    both = ["first_stage.optimizer.lr", LR, "seed"]
    assert short_names(both) == {name: name for name in both}
    losses = ["second_stage.loss.sync", "first_stage.loss.sync", "second_stage.loss.lpips"]
    assert list(short_names(losses).values()) == [*losses[:2], "lpips"]
    assert short_names(["lr", LR]) == {"lr": "lr", LR: "optimizer.lr"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2e-4, "2e-4"),
        (3.2e-3, "3.2e-3"),
        (0.00032174, "3.217e-4"),
        (0.05, "0.05"),
        (0.0, "0"),
        (-1e-9, "-1e-9"),
        (1234.56, "1235"),
        (2.5e6, "2.5e6"),
        (float("inf"), "inf"),
        ([1e-3, 2], "1e-3, 2"),
        (None, "-"),
    ],
)
def test_values_are_written_as_people_write_them(value: object, text: str) -> None:
    assert value_text(value) == text


def test_a_trial_is_named_by_its_values() -> None:
    assert values_name({"transition.at_step": 400, LR: 2e-4}) == "at400_lr2e-4"
    patience = {"transition.plateau.patience_steps": 80, "transition.plateau.min_delta": 0.05, "seed": 3}
    assert values_name(patience) == "min_delta0.05_patience80_seed3"
    assert values_name({"second_stage.trainable_modules": ["motion_modules.", "attn/2"]}) == (
        "trainable_modulesmotion_modules.-attn-2"
    )
    assert values_name({}) == "recipe"
