"""Keys: what enters them (golden), that they tell lineages apart, and the walk from step 0 to a trial's end."""

import dataclasses
import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentsync_ray.config.loading import stage_config
from latentsync_ray.config.plain import Settings
from latentsync_ray.config.transition import TransitionConfig
from latentsync_ray.core.hashing import digest
from latentsync_ray.core.segment import NUMERICS, Segment
from latentsync_ray.core.trial_recipe import TrialRecipe
from latentsync_ray.latentsync.config import (
    ComponentsConfig,
    LatentSyncRecipe,
    LatentSyncSecondStage,
    LatentSyncStage,
    LossConfig,
    ValidationConfig,
)
from latentsync_ray.latentsync.data.config import DataConfig
from latentsync_ray.latentsync.optimizer import OptimizerConfig
from latentsync_ray.planning.simulation import PlannedTrial

GOLDEN = json.loads((Path(__file__).parent / "golden" / "keys.json").read_text())
MODEL = {"block_out_channels": [32, 64], "norm_num_groups": 8}
FINGERPRINTS = {"data": "d" * 64, "vae": "v" * 64}


def make_recipe(**second_stage: Any) -> LatentSyncRecipe:
    return LatentSyncRecipe(
        data=DataConfig(folder="/clips", num_frames=8),
        components=ComponentsConfig(vae="/vae", audio_encoder="/whisper"),
        transition=TransitionConfig(max_step=80),
        first_stage=LatentSyncStage(model=MODEL, report_every_steps=20),
        second_stage=LatentSyncSecondStage(model=MODEL, report_every_steps=10, **{"num_steps": 30, **second_stage}),
    )


def walk(recipe: LatentSyncRecipe, transition_step: int, root: str = "root") -> list[Segment]:
    """All segments of a trial that leaves stage one at a step."""
    transition = TransitionConfig(max_step=max(80, transition_step), at_step=transition_step)
    planned = TrialRecipe.of(dataclasses.replace(recipe, transition=transition))
    return list(PlannedTrial(0, planned, root).walk())


def root_key(recipe: LatentSyncRecipe, fingerprints: dict[str, str], extra: Settings | None = None) -> str:
    return TrialRecipe.of(recipe).root_key(fingerprints, extra)


def stage_settings(stage: LatentSyncStage) -> Settings:
    """What of a stage's settings enters its segments' keys."""
    recipe = dataclasses.replace(make_recipe(), first_stage=stage)
    return TrialRecipe.of(recipe).segment_settings("first_stage")


def test_a_segment_passes_between_processes_with_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    segments = walk(make_recipe(), 40)
    passed = pickle.dumps(segments)
    monkeypatch.setattr("latentsync_ray.core.segment.digest", None)  # nobody computes a key again
    arrived = pickle.loads(passed)
    assert arrived == segments and [segment.key for segment in arrived] == [segment.key for segment in segments]


def test_a_segment_shares_the_settings_of_another_one_if_they_are_equal() -> None:
    first, second, *_, last = walk(make_recipe(optimizer=OptimizerConfig(lr=0.5)), 40)
    second = pickle.loads(pickle.dumps(second))
    assert second.config == first.config and second.config is not first.config
    sharing = second.sharing_config(first)
    assert sharing == second and sharing.key == second.key
    assert sharing.config is first.config
    assert last.sharing_config(first) is last


def test_a_change_of_what_enters_the_keys_is_deliberate() -> None:
    """A failure means that stored segments are no longer found; if that is meant, renew golden/keys.json."""
    recipe = make_recipe()
    assert GOLDEN["numerics"] == NUMERICS
    assert root_key(recipe, FINGERPRINTS) == GOLDEN["root"]
    segment = Segment("p" * 64, "second_stage", stage_settings(recipe.second_stage), 20, 20, 30)
    assert segment.key == GOLDEN["segment"]
    assert sorted(segment.config) == GOLDEN["config"]


def test_the_key_is_the_hash_of_canonical_json() -> None:
    # printf '{"config":{"a":1},"end_step":2,"parent":"p","stage":"s"}' | sha256sum
    expected = "1c7b10724d528f487de32d74d1de78ff8e4384eb5782e913ad5f7fa3478108c9"
    assert Segment("p", "s", {"a": 1}, 0, 0, 2).key == expected


names = st.sampled_from(["a", "b", "c"])
values = st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from([0.5, 1e-4, 1e-5]) | names
lineages = st.tuples(
    names, names, st.dictionaries(names, values | st.lists(values, max_size=2), max_size=2), st.integers(0, 3)
)


@settings(deadline=None)
@given(lineages, lineages, st.integers(0, 3), st.integers(0, 3))
def test_keys_are_equal_iff_parent_stage_config_and_end_are(
    one: tuple[Any, ...], other: tuple[Any, ...], start: int, stage_start: int
) -> None:
    parent, stage, config, end = one
    segment = Segment(parent, stage, config, 0, 0, end)
    parent, stage, config, end = other
    # json tells 1, 1.0 and true apart, Python's == does not.
    assert (segment.key == Segment(parent, stage, config, start, stage_start, end).key) == (
        json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    )


@settings(deadline=None)
@given(st.permutations(["a", "b", "c", "d"]))
def test_the_order_of_settings_does_not_matter(order: list[str]) -> None:
    assert digest({name: name for name in order}) == digest({name: name for name in "abcd"})


def test_nan_has_no_key() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest({"lr": float("nan")})


def test_what_changes_no_number_is_not_in_the_key_and_is_the_recipe_s_own() -> None:
    recipe = make_recipe(gradient_checkpointing=True)
    values = stage_settings(recipe.second_stage)
    assert values == stage_settings(dataclasses.replace(recipe.second_stage, gradient_checkpointing="auto"))
    made = stage_config(recipe, "second_stage", values)
    assert isinstance(made, LatentSyncStage) and made.gradient_checkpointing is True


@settings(deadline=None)
@given(st.sampled_from([5, 10, 20, 40]), st.integers(1, 9))
def test_boundaries_and_length_are_not_in_the_key(every: int, num_reports: int) -> None:
    base = make_recipe().second_stage
    other = dataclasses.replace(base, report_every_steps=every, num_steps=every * num_reports)
    assert stage_settings(other) == stage_settings(base)


def test_every_other_setting_is() -> None:
    stage = LatentSyncStage(model=MODEL)
    changed = [
        {"model": {**MODEL, "norm_num_groups": 4}},
        {"trainable_modules": ("attentions.",)},
        {"loss": LossConfig(sync=0.05)},
        {"optimizer": OptimizerConfig(implementation="fused")},
        {"lr_scheduler": dataclasses.replace(stage.lr_scheduler, num_warmup_steps=1)},
        {"batch_size": 2},
        {"gradient_accumulation_steps": 2},
        {"mixed_noise_alpha": 0.0},
        {"ema_decay": 0.99},
        {"dtype": "bfloat16"},
        {"compile": True},
        {"num_workers": 2},
        {"num_threads": 2},
    ]
    assert {name for change in changed for name in change} == set(stage_settings(stage))
    variants = [dataclasses.replace(stage, **change) for change in [{}, *changed]]
    assert len({digest(stage_settings(variant)) for variant in variants}) == len(variants)


def test_the_root_holds_what_all_segments_depend_on_and_nothing_else() -> None:
    recipe = make_recipe()
    root = root_key(recipe, FINGERPRINTS)
    same = [
        dataclasses.replace(recipe, transition=TransitionConfig(max_step=40, at_step=20)),
        dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, folder="/moved")),
        dataclasses.replace(recipe, components=ComponentsConfig(vae="/moved", audio_encoder="/moved")),
        dataclasses.replace(recipe, validation=ValidationConfig(objective=LossConfig(recon=7.0))),
        dataclasses.replace(recipe, divergence_factor=None),
        make_recipe(batch_size=3),
    ]
    assert {root_key(other, FINGERPRINTS) for other in same} == {root}
    different = [
        root_key(dataclasses.replace(recipe, seed=1), FINGERPRINTS),
        root_key(dataclasses.replace(recipe, data=DataConfig("/clips", num_frames=16)), FINGERPRINTS),
        root_key(dataclasses.replace(recipe, validation=ValidationConfig(timesteps=(500,))), FINGERPRINTS),
        root_key(recipe, {**FINGERPRINTS, "vae": "w" * 64}),
        root_key(recipe, FINGERPRINTS, {"trial": "0"}),
    ]
    assert len({root, *different}) == 1 + len(different)


@settings(deadline=None)
@given(st.integers(1, 4), st.sampled_from([5, 10, 20]), st.integers(1, 4))
def test_a_walk_ends_exactly_at_its_end(num_first: int, every: int, num_second: int) -> None:
    recipe = make_recipe(num_steps=every * num_second)
    recipe = dataclasses.replace(
        recipe, second_stage=dataclasses.replace(recipe.second_stage, report_every_steps=every)
    )
    segments = walk(recipe, 20 * num_first)
    assert sum(segment.num_steps for segment in segments) == 20 * num_first + every * num_second
    assert [segment.stage for segment in segments] == ["first_stage"] * num_first + ["second_stage"] * num_second
    assert {segment.stage_start_step for segment in segments} == {0, 20 * num_first}
    parents = ["root", *(segment.key for segment in segments)]
    for parent, before, segment in zip(parents, [None, *segments], segments, strict=False):
        assert segment.parent == parent
        assert segment.start_step == (before.end_step if before else 0)


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from([1e-4, 2e-4]), st.sampled_from([1e-4, 2e-4]))
def test_trials_share_exactly_what_comes_before_they_differ(one: int, other: int, lr: float, other_lr: float) -> None:
    walks = [
        [segment.key for segment in walk(make_recipe(optimizer=OptimizerConfig(lr=rate)), 20 * num_first)]
        for num_first, rate in ((one, lr), (other, other_lr))
    ]
    num_shared = sum(1 for _ in itertools.takewhile(lambda keys: keys[0] == keys[1], zip(*walks, strict=False)))
    assert num_shared == (len(walks[0]) if (one, lr) == (other, other_lr) else min(one, other))
    assert not set(walks[0][num_shared:]) & set(walks[1][num_shared:])


def test_settings_and_segments_survive_json() -> None:
    stage = make_recipe(trainable_modules=("attentions.",), optimizer=OptimizerConfig(betas=(0.5, 0.9))).second_stage
    stored = json.loads(json.dumps(stage_settings(stage)))
    assert stage_settings(stage_config(make_recipe(), "second_stage", stored)) == stage_settings(stage)
    for segment in walk(make_recipe(), 40):
        assert Segment(**json.loads(json.dumps(segment.to_dict()))).key == segment.key


def test_a_threshold_of_zero_leaves_stage_one_out() -> None:
    recipe = make_recipe()
    first = walk(recipe, 0)[0]
    assert (first.stage, first.parent, first.start_step, first.stage_start_step, first.end_step) == (
        "second_stage",
        "root",
        0,
        0,
        10,
    )
