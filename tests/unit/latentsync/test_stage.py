"""The two-stage training by itself: LatentSync's own step, exact restarts, every loss term, the guard."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from records import make_segment, make_trained
from safetensors.torch import load_file

from latentsync_ray.config.loading import load_recipe
from latentsync_ray.latentsync import batches
from latentsync_ray.latentsync.batches import Draw
from latentsync_ray.latentsync.config import LOSS_TERMS, LatentSyncRecipe, LatentSyncStage, LossConfig
from latentsync_ray.latentsync.data.clips import PreparedClips
from latentsync_ray.latentsync.inputs import ready_inputs
from latentsync_ray.latentsync.models.interop import write_official
from latentsync_ray.latentsync.objective import Objective
from latentsync_ray.latentsync.optimizer import LRSchedulerConfig, OptimizerConfig
from latentsync_ray.latentsync.stage import Stages, StagesSetup
from latentsync_ray.store import Store, weights_sha256

ROOT = Path(__file__).resolve().parents[3]
SEGMENTS = [
    ("first_stage", 0, 2),
    ("first_stage", 2, 4),
    ("second_stage", 4, 6),
    ("second_stage", 6, 8),
]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> LatentSyncRecipe:
    """The demo's, with two short clips."""
    small = {"num_speakers": 2, "clips_per_speaker": 1, "num_frames": 30, "num_validation_speakers": 1}
    overrides = {f"data.synthetic.{name}": value for name, value in small.items()}
    overrides |= {"data.folder": str(tmp_path_factory.mktemp("data")), "validation.num_samples": 3}
    overrides |= {"first_stage.ema_decay": 0.0, "second_stage.ema_decay": 0.0}
    notes = Store(str(tmp_path_factory.mktemp("notes")))
    return ready_inputs(load_recipe(ROOT / "configs" / "demo", overrides), notes).recipe


def new_training(recipe: LatentSyncRecipe) -> Stages:
    return Stages(
        StagesSetup(
            samples=PreparedClips.open(recipe.data.folder),
            components=recipe.components,
            validation=recipe.validation,
            num_frames=recipe.data.num_frames,
            seed=recipe.seed,
            device=torch.device("cpu"),
        )
    )


def run(
    training: Stages, recipe: LatentSyncRecipe, segments: list[tuple[str, int, int]], state: Mapping | None, of: str
) -> list[tuple[str, dict[str, float], dict[str, torch.Tensor]]]:
    """Trains segments one after another in one process, building only where the stage changes, as a warm worker does.

    Returns:
        For each segment its weights' hash, its metrics and its state.
    """
    results = []
    for number, (stage, start, end) in enumerate(segments):
        if number == 0 or stage != of:
            training.build(stage, getattr(recipe, stage), state, of)
        stage_start = next(first for name, first, _ in SEGMENTS if name == stage)
        losses = [training.step(step, step - stage_start) for step in range(start, end)]
        metrics = training.validate() | {f"loss {i}": value["loss"] for i, value in enumerate(losses)}
        # The optimizer goes on changing its tensors in place: a state that is looked at later is a copy.
        state, of = {name: tensor.clone() for name, tensor in training.state().items()}, stage
        results.append((weights_sha256(state), metrics, state))
    return results


class GoldenSamples:
    """The batch of LatentSync's own step, sample by sample."""

    def __init__(self, golden: Mapping[str, torch.Tensor]):
        names = {"latents": "gt_latents", "audio_features": "audio_embeds"}
        names |= {name: name for name in ("masks", "masked_latents", "ref_latents")}
        self.batch = {name: golden[f"in.{original}"] for name, original in names.items()}

    def train_sample(self, seed: int, global_step: int, index: int, num_frames: int) -> dict[str, torch.Tensor]:
        return {name: tensor[index] for name, tensor in self.batch.items()}

    def validation_samples(self, num_samples: int, num_frames: int, seed: int) -> list:
        return []


@pytest.mark.parametrize(("number", "stage"), [(1, "first_stage"), (2, "second_stage")])
def test_a_step_is_the_originals(
    number: int, stage: str, shared: Path, recipe: LatentSyncRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss, gradient norm and every parameter after the step, of the code that workers run."""
    files = shared / "golden" / f"unet_stage{number}_tiny"
    expected, golden = json.loads(Path(f"{files}.train.json").read_text()), load_file(f"{files}.train.safetensors")
    weights = {
        name.replace("state_dict.", "model."): tensor
        for name, tensor in load_file(f"{files}.safetensors").items()
        if name.startswith("state_dict.")
    }

    def golden_draw(seed: int, purpose: str, step: int, index: int, sample: Mapping) -> Draw:
        noise = golden["in.noise"][index]
        return Draw(int(golden["in.timesteps"][index]), torch.zeros_like(noise), noise)

    monkeypatch.setattr(batches, "draw", golden_draw)
    training = Stages(replace(new_training(recipe).setup, samples=GoldenSamples(golden)))
    config = LatentSyncStage(
        model=json.loads(Path(f"{files}.config.json").read_text()),
        trainable_modules=expected["trainable_modules"],
        batch_size=2,
        mixed_noise_alpha=0,
    )
    for lr, key, tolerance in [(1e-5, "update_sum_abssum", 1e-2), (0.1, "update_sum_abssum_lr_0p1", 1e-3)]:
        training.build(stage, replace(config, optimizer=OptimizerConfig(lr=lr)), weights, "")
        metrics, state = training.step(0, 0), training.state()
        assert metrics == pytest.approx(
            {
                "loss": expected["loss"],
                "recon": expected["loss"],
                "grad_norm": expected["grad_norm_before_clip"],
                "lr": lr,
            },
            rel=1e-5,
        )
        updates = {name: state[name].double() - before.double() for name, before in weights.items()}
        for name, (total, abs_total) in expected[key].items():
            update = updates.pop(f"model.{name}")
            assert abs(update.sum().item() - total) <= tolerance * abs_total, (name, lr)
            assert abs(update.abs().sum().item() - abs_total) <= tolerance * abs_total, (name, lr)
        assert all((update == 0).all() for update in updates.values())  # what is not trained
        if lr == expected["optimizer"]["lr"]:
            for name, (total, abs_total) in expected["after_step_sum_abssum"].items():
                after = state[f"model.{name}"].double()
                assert abs(after.sum().item() - total) <= 1e-5 * abs_total, name
                assert after.abs().sum().item() == pytest.approx(abs_total, rel=1e-5), name


def test_a_rank_without_validation_samples_reports_the_same_terms(recipe: LatentSyncRecipe) -> None:
    for components in (recipe.components, replace(recipe.components, syncnet=None)):
        setup = StagesSetup(
            PreparedClips.open(recipe.data.folder), components, recipe.validation, recipe.data.num_frames, 0,
            torch.device("cpu"),
        )  # fmt: skip
        terms = []
        for rank in (0, recipe.validation.num_samples):
            training = Stages(replace(setup, rank=rank))
            training.build("first_stage", recipe.first_stage, None, "")
            terms.append(set(training.validate()))
        assert terms[0] == terms[1]


def test_a_run_stopped_at_any_boundary_goes_on_to_the_same_bits(recipe: LatentSyncRecipe, tmp_path: Path) -> None:
    whole = run(new_training(recipe), recipe, SEGMENTS, None, "")
    assert len({weights for weights, _, _ in whole}) == len(SEGMENTS)
    store = Store(str(tmp_path))
    for boundary in range(1, len(SEGMENTS)):
        record = store.publish(make_trained(make_segment(boundary)), whole[boundary - 1][2])
        stored = store.read_state(record.key, record.state.sha256)
        rest = run(new_training(recipe), recipe, SEGMENTS[boundary:], stored, SEGMENTS[boundary - 1][0])
        for (weights, metrics, state), (weights_again, metrics_again, state_again) in zip(
            whole[boundary:], rest, strict=True
        ):
            assert weights_again == weights
            assert metrics_again == metrics
            assert all(torch.equal(state[name], state_again[name]) for name in state | state_again)


@pytest.mark.parametrize("term", LOSS_TERMS)
def test_each_loss_term_alone_reaches_the_unet(term: str, recipe: LatentSyncRecipe) -> None:
    training = new_training(recipe)
    alone = LossConfig(**{other: float(other == term) for other in LOSS_TERMS})
    training.build("second_stage", replace(recipe.second_stage, loss=alone, batch_size=1), None, "")
    assert training.step(0, 0)["grad_norm"] > 0
    attentions = [parameter for name, parameter in training.trainable if "attentions." in name]
    assert attentions and all(parameter.grad is not None for parameter in attentions)


def test_validation_does_not_depend_on_how_many_pairs_are_measured_at_a_time(recipe: LatentSyncRecipe) -> None:
    results = []
    for batch_size in (1, 2, 6):
        validation = replace(recipe.validation, batch_size=batch_size, timesteps=(300, 700))
        training = new_training(replace(recipe, validation=validation))
        training.build("first_stage", recipe.first_stage, None, "")
        results.append(training.validate())
    assert set(results[0]) == {"val/recon", "val/sync", "val/sync_confidence", "val/lpips", "val/trepa"}
    for other in results[1:]:
        assert other == pytest.approx(results[0], rel=1e-4)


def test_a_diverging_run_is_stopped_with_the_step_and_the_term(recipe: LatentSyncRecipe) -> None:
    training = new_training(recipe)
    optimizer = OptimizerConfig(lr=1e30)
    training.build("first_stage", replace(recipe.first_stage, optimizer=optimizer), None, "")
    with pytest.raises(FloatingPointError, match=r"step [23]: the (recon loss|gradient norm) is"):
        for step in range(3):
            training.step(step, step)


def test_stage_two_diverges_in_numbers_too(recipe: LatentSyncRecipe) -> None:
    """Where the sync loss would meet a similarity that is no number, which torch refuses."""
    training = new_training(recipe)
    training.build("second_stage", recipe.second_stage, None, "")
    with torch.no_grad():
        training.unet.conv_out.bias.fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"step 8: the recon loss is nan"):
        training.step(7, 7)


def first_layer(objective: Objective) -> torch.dtype:
    """The type of the first weights of the autoencoder's decoder."""
    return next(objective.networks.vae.decoder.parameters()).dtype


def test_frozen_layers_held_narrow_compute_the_same_bits(
    recipe: LatentSyncRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU; states and what trials are compared by have the weights as they were."""
    stage, results = replace(recipe.second_stage, dtype="bfloat16"), []
    training = new_training(recipe)
    for narrow in (False, True):
        monkeypatch.setattr(Stages, "_narrows", lambda self, config, narrow=narrow: narrow)
        training.build("second_stage", stage, None, "")
        losses = [dict(training.step(step, step)) for step in range(2)]
        results.append((losses, weights_sha256(training.state()), training.validate()))
        dtypes = {name: parameter.dtype for name, parameter in training.unet.named_parameters()}
        assert (dtypes["down_blocks.0.resnets.0.conv1.weight"] == torch.bfloat16) == narrow
        assert (first_layer(training.objective) == torch.bfloat16) == narrow
        assert dtypes["down_blocks.0.attentions.0.proj_in.weight"] == torch.float32  # is trained
        assert dtypes["conv_norm_out.weight"] == first_layer(training.judging) == torch.float32
    assert results[1] == results[0]


def test_the_stage_that_starts_takes_the_given_weights(recipe: LatentSyncRecipe, tmp_path: Path) -> None:
    given = new_training(replace(recipe, seed=5))
    given.build("first_stage", recipe.first_stage, None, "")
    weights = {name: tensor.clone() for name, tensor in given.unet.state_dict().items()}
    write_official(tmp_path / "unet.pt", weights, 0)
    training = new_training(replace(recipe, components=replace(recipe.components, unet=str(tmp_path / "unet.pt"))))
    for stage in ("first_stage", "second_stage"):
        training.build(stage, getattr(recipe, stage), None, "")
        started = training.unet.state_dict()
        assert all(torch.equal(started[name], weights[name]) for name in weights)
    # What a segment leaves behind comes before the weights that the first one started from.
    training.step(0, 0)
    state = training.state()
    training.build("second_stage", recipe.second_stage, state, "second_stage")
    assert all(torch.equal(training.unet.state_dict()[name], state[f"model.{name}"]) for name in weights)


def test_each_stage_follows_its_own_learning_rate_from_its_beginning(recipe: LatentSyncRecipe) -> None:
    """Whether it is built anew in mid-stage or not."""
    first = replace(recipe.first_stage, lr_scheduler=LRSchedulerConfig("constant_with_warmup", 3))
    second = replace(recipe.second_stage, loss=LossConfig(), lr_scheduler=LRSchedulerConfig("cosine", 2, 6))
    training, lrs = new_training(recipe), []
    training.build("first_stage", first, None, "")
    lrs += [training.step(step, step)["lr"] for step in range(5)]
    training.build("second_stage", second, training.state(), "first_stage")
    lrs += [training.step(step, step - 5)["lr"] for step in range(5, 8)]
    training.build("second_stage", second, training.state(), "second_stage")
    lrs += [training.step(step, step - 5)["lr"] for step in range(8, 12)]

    warm_up = [0, 1 / 3, 2 / 3, 1, 1]
    cosine = [0, 1 / 2, *((1 + math.cos(math.pi * step / 4)) / 2 for step in range(5))]
    factors = [first.optimizer.lr * factor for factor in warm_up]
    factors += [second.optimizer.lr * factor for factor in cosine]
    assert lrs == pytest.approx(factors, rel=1e-6, abs=1e-12)


class InDouble(Stages):
    """Computes in double precision, where rounding is out of the way of what is compared."""

    def build(self, stage: str, config: LatentSyncStage, state: Mapping[str, torch.Tensor] | None, of: str) -> None:
        super().build(stage, config, state, of)
        for network in (self.unet, *vars(self.networks).values()):
            network.double()
        self.objective = ObjectiveInDouble(**vars(self.objective))


class ObjectiveInDouble(Objective):
    def terms(self, network, batch, weights):
        inputs = {
            name: value.double() if value.is_floating_point() else value for name, value in batch.inputs.items()
        }
        return super().terms(network, replace(batch, inputs=inputs, noise=batch.noise.double()), weights)


# Of a gradient that is clipped to a norm of 1; in float32 a little more is left on the way through SyncNet.
@pytest.mark.parametrize(
    ("stage", "kind", "most"),
    [
        ("first_stage", Stages, 1e-6),
        ("second_stage", Stages, 5e-6),
        ("first_stage", InDouble, 1e-14),
        ("second_stage", InDouble, 1e-14),
    ],
)
def test_micro_batches_add_up_to_the_batch(
    stage: str, kind: type[Stages], most: float, recipe: LatentSyncRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, results = kind(new_training(recipe).setup), []
    if kind is InDouble:
        monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    config = replace(getattr(recipe, stage), batch_size=4)
    for steps in (1, 4):
        training.build(stage, replace(config, gradient_accumulation_steps=steps), None, "")
        metrics = training.step(0, 0)
        gradients = torch.cat([parameter.grad.flatten() for _, parameter in training.trainable])
        results.append((metrics, gradients))
    (whole, gradient), (parts, gradient_of_parts) = results
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert (gradient - gradient_of_parts).abs().max() <= most


def test_gradient_checkpointing_changes_nothing(recipe: LatentSyncRecipe) -> None:
    training, results = new_training(recipe), []
    for checkpointing in (False, True):
        stage = replace(recipe.second_stage, gradient_checkpointing=checkpointing)
        training.build("second_stage", stage, None, "")
        results.append([training.step(step, step) for step in range(2)])
    assert results[1] == results[0]


def test_half_precision_validates_as_full_precision_does(recipe: LatentSyncRecipe) -> None:
    training = new_training(recipe)
    results = {}
    for dtype in ("float32", "bfloat16", "float16"):
        training.build("second_stage", replace(recipe.second_stage, dtype=dtype), None, "")
        results[dtype] = training.validate()
    for dtype in ("bfloat16", "float16"):
        for term in LOSS_TERMS:
            assert results[dtype][f"val/{term}"] == pytest.approx(results["float32"][f"val/{term}"], rel=0.01)
        confidence = results["float32"]["val/sync_confidence"]  # a cosine
        assert results[dtype]["val/sync_confidence"] == pytest.approx(confidence, abs=0.01)


def test_the_average_is_validated_handed_on_and_goes_on_exactly(recipe: LatentSyncRecipe) -> None:
    decay = 0.5
    stage = replace(recipe.first_stage, ema_decay=decay)
    training = new_training(recipe)
    training.build("first_stage", stage, None, "")
    name, parameter = training.trainable[0]
    seen = []
    for step in range(3):
        training.step(step, step)
        seen.append(parameter.detach().clone())
    # diffusers' EMAModel warms up: the decay is at most (1 + n) / (10 + n) after n updates (its get_decay).
    average = seen[0]
    for n, value in enumerate(seen[1:], start=1):
        average = average + (1 - min(decay, (1 + n) / (10 + n))) * (value - average)
    state = {name: tensor.clone() for name, tensor in training.state().items()}
    torch.testing.assert_close(state[f"model.{name}"], average)
    assert torch.equal(state[f"trained.{name}"], seen[-1]) and torch.equal(parameter, seen[-1])

    plain = new_training(recipe)  # what is validated, and what stage two starts from, is the average
    plain.build("first_stage", recipe.first_stage, {n: t for n, t in state.items() if n[:6] == "model."}, "")
    assert training.validate() == plain.validate()
    assert torch.equal(parameter, seen[-1])
    plain.build("second_stage", recipe.second_stage, state, "first_stage")
    assert torch.equal(plain.unet.state_dict()[name], state[f"model.{name}"])

    again = new_training(recipe)
    again.build("first_stage", stage, state, "first_stage")
    assert again.step(3, 3) == training.step(3, 3)
    assert weights_sha256(again.state()) == weights_sha256(training.state())


def test_a_compiled_unet_keeps_its_names(recipe: LatentSyncRecipe) -> None:
    """Compiling itself takes minutes on a CPU and is left out."""
    names = []
    for compiled in (False, True):
        training = new_training(recipe)
        training.build("first_stage", replace(recipe.first_stage, compile=compiled), None, "")
        assert (training.network is not training.unet) == compiled
        names.append(set(training.state()))
    assert names[0] == names[1]


def test_an_overflow_in_float16_halves_the_scale_and_takes_the_step_again(recipe: LatentSyncRecipe) -> None:
    stage = replace(recipe.first_stage, dtype="float16")
    training = new_training(recipe)
    training.build("first_stage", stage, None, "")
    training.scaler.load_state_dict(training.scaler.state_dict() | {"scale": 2.0**22})
    metrics = training.step(0, 0)
    assert 1 < training.scaler.get_scale() < 2.0**22
    assert 0 < metrics["grad_norm"] < float("inf")
    assert {int(value["step"]) for value in training.optimizer.state.values()} == {1}  # one step was taken

    # The scale belongs to the state: a restart goes on to the same bits.
    state = {name: tensor.clone() for name, tensor in training.state().items()}
    following = training.step(1, 1)
    again = new_training(recipe)
    again.build("first_stage", stage, state, "first_stage")
    assert again.scaler.get_scale() == state["scaler.scale"].item()
    assert again.step(1, 1) == following


def test_the_preview_shows_masked_input_generated_and_ground_truth(recipe: LatentSyncRecipe) -> None:
    training = new_training(recipe)
    training.build("first_stage", recipe.first_stage, None, "")
    before = training.validate()
    preview = training.preview()
    assert preview.dtype == torch.uint8
    cells = preview.unflatten(0, (3, 64)).unflatten(2, (3, 64)).permute(2, 0, 4, 1, 3)  # (column, row, C, H, W)
    masked, generated, truth = cells
    sample = training.validation.samples[0]
    assert torch.equal(truth, sample["frames"][:, [0, 4, 7]].transpose(0, 1))
    kept = torch.nn.functional.interpolate(sample["masks"], size=(64, 64))[:, 0].bool().expand(3, 3, 64, 64)
    assert torch.equal(masked[kept], truth[kept]) and (masked[~kept] == 128).all()
    assert not torch.equal(generated, truth)
    assert training.validate() == before


def test_a_metric_is_the_mean_of_each_window_and_timestep(recipe: LatentSyncRecipe) -> None:
    training = new_training(replace(recipe, validation=replace(recipe.validation, timesteps=(300, 700))))
    training.build("first_stage", recipe.first_stage, None, "")
    assert training.validation_terms() is None
    metrics = training.validate()
    terms = training.validation_terms()
    assert terms is not None and terms.means() == metrics
    assert len(terms.clips) == 2 * recipe.validation.num_samples == len(terms.values["val/recon"])
    assert set(terms.groups) == {clip.split("/")[0] for clip in terms.clips}
    assert len(set(terms.values["val/sync"])) > 1
