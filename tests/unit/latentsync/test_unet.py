"""The UNet against LatentSync's own numbers, and what it promises beyond them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from latentsync_ray.latentsync.models.unet import UNet3DConditionModel, select_trainable, warm_start

TINY: dict[str, Any] = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
    "cross_attention_dim": 16,
}


def tiny_unet(**options: Any) -> UNet3DConditionModel:
    torch.manual_seed(0)
    return UNet3DConditionModel(**{**TINY, **options})


def tiny_inputs(height: int = 8, width: int = 8, num_frames: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(2, 13, num_frames, height, width, generator=generator)
    return sample, torch.tensor([3, 700]), torch.randn(2, num_frames, 5, 16, generator=generator)


def golden_unet(shared: Path, stage: int, gain: float = 1.0) -> tuple[UNet3DConditionModel, dict[str, Tensor]]:
    """LatentSync's configuration and weights, their matrices multiplied by `gain`, and its inputs and outputs."""
    golden = shared / "golden"
    unet = UNet3DConditionModel(**json.loads((golden / f"unet_stage{stage}_tiny.config.json").read_text()))
    tensors = load_file(golden / f"unet_stage{stage}_tiny.safetensors")
    prefix = "state_dict."
    unet.load_state_dict({name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)})
    with torch.no_grad():
        for parameter in unet.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(gain)
    return unet, tensors


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("gain", [0.25, 1, 2])
def test_outputs_are_the_originals(shared: Path, stage: int, gain: float) -> None:
    unet, golden = golden_unet(shared, stage, gain)
    sample, timesteps, audio = (golden[f"in.{k}"] for k in ("sample", "timesteps", "encoder_hidden_states"))
    expected = golden["out.sample" if gain == 1 else f"out.sample_gain{gain}"]
    with torch.no_grad():
        predicted = unet(sample, timesteps, audio).sample
        assert_close(predicted, expected)
        if gain == 0.25:  # 2e-7 here; 2e-6 and more with another epsilon in the transformers' group norms
            assert (predicted - expected).square().mean().sqrt() < 8e-7
        assert torch.equal(unet(sample, timesteps, audio.flatten(0, 1)).sample, predicted)
        assert_close(unet(sample[:1], int(timesteps[0]), audio[:1]).sample, expected[:1])


@pytest.mark.parametrize("name", ["stage1", "stage2", "stage2_efficient"])
def test_official_sizes_have_the_originals_names_shapes_and_trainable_parameters(shared: Path, name: str) -> None:
    manifest = json.loads((shared / "golden" / f"manifest_unet_{name}.json").read_text())
    with torch.device("meta"):
        unet = UNet3DConditionModel(**manifest["model"])

    shapes = {key: list(tensor.shape) for key, tensor in unet.state_dict().items()}
    assert list(shapes.items()) == list(manifest["state_dict"].items())
    assert sum(parameter.numel() for parameter in unet.parameters()) == manifest["parameter_count"]

    trainable = select_trainable(unet, manifest["trainable_modules"])
    assert len(trainable) == manifest["trainable_tensor_count"]
    assert sum(parameter.numel() for _, parameter in trainable) == manifest["trainable_parameter_count"]
    frozen = [key for key, parameter in unet.named_parameters() if not parameter.requires_grad]
    assert frozen == manifest["frozen_parameters"]


@pytest.mark.parametrize("stage", [1, 2])
def test_gradients_are_the_originals(shared: Path, stage: int) -> None:
    """Of every parameter; the step that follows from them is in test_stage.py."""
    expected = json.loads((shared / "golden" / f"unet_stage{stage}_tiny.train.json").read_text())
    golden = load_file(shared / "golden" / f"unet_stage{stage}_tiny.train.safetensors")
    unet, _ = golden_unet(shared, stage)
    trainable = dict(select_trainable(unet, expected["trainable_modules"]))
    assert len(trainable) == expected["trainable_tensor_count"]

    inputs = ("out.noisy_gt_latents", "in.masks", "in.masked_latents", "in.ref_latents")
    sample = torch.cat([golden[name] for name in inputs], 1)
    pred_noise = unet(sample, golden["in.timesteps"], golden["in.audio_embeds"]).sample
    assert_close(pred_noise, golden["out.pred_noise"])

    torch.nn.functional.mse_loss(pred_noise, golden["in.noise"]).backward()
    norms = {name: parameter.grad.norm().item() for name, parameter in trainable.items()}
    assert norms == pytest.approx(expected["grad_norms"], rel=1e-4)
    for name, gradient in golden.items():
        if name.startswith("grad."):
            actual = trainable[name.removeprefix("grad.")].grad
            torch.testing.assert_close(actual, gradient, rtol=0, atol=1e-4 * gradient.abs().max().item())


def gradients(unet: UNet3DConditionModel) -> tuple[dict[str, Tensor], int]:
    """Every parameter's gradient, and the bytes of activations kept for the backward pass."""
    kept = {}
    parameters = {parameter.data_ptr() for parameter in unet.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    unet.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = unet(*tiny_inputs()).sample.square().mean()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in unet.named_parameters()}, sum(kept.values())


def test_gradient_checkpointing_keeps_less_and_changes_nothing() -> None:
    unet = tiny_unet(
        use_motion_module=True, motion_module_mid_block=True, motion_module_kwargs={"zero_initialize": False}
    )
    plain, plain_bytes = gradients(unet)
    unet.enable_gradient_checkpointing()
    checkpointed, checkpointed_bytes = gradients(unet)
    assert all(torch.equal(checkpointed[name], plain[name]) for name in plain)
    assert checkpointed_bytes < plain_bytes / 3


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("act_fn", "gelu", "'gelu'"),
        ("mid_block_type", "UNetMidBlock3DSimpleCrossAttn", "'UNetMidBlock3DSimpleCrossAttn'"),
        ("down_block_types", ("CrossAttnDownBlock3D", "AttnDownBlock3D"), "'AttnDownBlock3D'"),
        ("up_block_types", ("UpBlock2D", "CrossAttnUpBlock3D"), "'UpBlock2D'"),
        ("up_block_types", ("UpBlock3D",), r"\('UpBlock3D',\)"),
        ("downsample_padding", 0, "0"),
        ("mid_block_scale_factor", 2, "2"),
        ("resnet_time_scale_shift", "scale_shift", "'scale_shift'"),
        ("motion_module_type", "Conv", "'Conv'"),
    ],
)
def test_unknown_values_are_named(option: str, value: Any, named: str) -> None:
    with pytest.raises(ValueError, match=f"^{option}: expected .*, got {named}$"):
        tiny_unet(**{option: value})


def test_unknown_motion_attention_is_named() -> None:
    with pytest.raises(ValueError, match=r"attention_block_types: .* got 'Temporal_Cross'"):
        tiny_unet(use_motion_module=True, motion_module_kwargs={"attention_block_types": ["Temporal_Cross"]})


def test_motion_modules_start_as_the_identity() -> None:
    first = tiny_unet()
    second = tiny_unet(use_motion_module=True)
    warm_start(second, first.state_dict())
    with torch.no_grad():
        assert torch.equal(second(*tiny_inputs()).sample, first(*tiny_inputs()).sample)


def test_warm_start_lists_the_keys_that_do_not_fit_and_loads_none() -> None:
    weights = tiny_unet().state_dict()
    weights["conv_inn.bias"] = weights.pop("conv_in.bias")
    weights["conv_out.weight"] = torch.zeros(8, 32, 3, 3)
    weights["conv_out.bias"] += 1
    unet = tiny_unet(use_motion_module=True)
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    expected = r"missing: conv_in\.bias; unexpected: conv_inn\.bias; of another shape: conv_out\.weight$"
    with pytest.raises(ValueError, match=expected):
        warm_start(unet, weights)
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())
    with pytest.raises(ValueError, match=r"unexpected: .*motion_modules\."):
        warm_start(tiny_unet(), before)


def test_select_trainable_freezes_the_rest_and_thaws_again() -> None:
    unet = tiny_unet(use_motion_module=True)
    chosen = [name for name, _ in select_trainable(unet, ["motion_modules.", "attn2."])]
    assert chosen == [name for name, parameter in unet.named_parameters() if parameter.requires_grad]
    assert chosen == [n for n, _ in unet.named_parameters() if "motion_modules." in n or "attn2." in n]
    assert len(select_trainable(unet, None)) == len(list(unet.parameters()))
    with pytest.raises(ValueError, match=r"trainable_modules: no parameter's name contains 'motion_module\.'"):
        select_trainable(unet, ["attn2.", "motion_module."])


@pytest.mark.parametrize("trainable_modules", [["motion_modules."], ["motion_modules.", "attn2."], ["conv_out."]])
def test_frozen_layers_change_no_gradient(trainable_modules: list[str]) -> None:
    # Reaches group norms that are trainable while their input is not: see the memory layout in `forward`.
    unet = tiny_unet(
        use_motion_module=True,
        motion_module_decoder_only=True,
        motion_module_kwargs={"zero_initialize": False},
    )
    full, _ = gradients(unet)
    unet.zero_grad()
    select_trainable(unet, trainable_modules)
    unet(*tiny_inputs()).sample.square().mean().backward()
    for name, parameter in unet.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter.grad, full[name]), name
        else:
            assert parameter.grad is None, name


def test_motion_modules_stand_where_the_options_say() -> None:
    def places(**options: Any) -> set[str]:
        names = tiny_unet(use_motion_module=True, **options).state_dict()
        return {name.split(".motion_modules.")[0] for name in names if ".motion_modules." in name}

    down, up = {"down_blocks.0", "down_blocks.1"}, {"up_blocks.0", "up_blocks.1"}
    assert places() == down | up
    assert places(motion_module_decoder_only=True) == up
    assert places(motion_module_mid_block=True) == down | up | {"mid_block"}
    assert places(motion_module_resolutions=[1]) == {"down_blocks.0", "up_blocks.1"}


def test_without_an_audio_layer_the_audio_is_ignored() -> None:
    unet = tiny_unet(add_audio_layer=False)
    sample, timesteps, audio = tiny_inputs()
    assert not any("attn2" in name for name in unet.state_dict())
    with torch.no_grad():
        assert torch.equal(unet(sample, timesteps, audio).sample, unet(sample, timesteps, audio + 1).sample)


def test_latents_need_not_be_divisible() -> None:
    sample, timesteps, audio = tiny_inputs(height=7, width=9)
    with torch.no_grad():
        assert tiny_unet()(sample, timesteps, audio).sample.shape == (2, 4, 3, 7, 9)


def test_more_frames_than_positions_are_refused() -> None:
    unet = tiny_unet(use_motion_module=True, motion_module_kwargs={"temporal_position_encoding_max_len": 2})
    with pytest.raises(ValueError, match="3 frames exceed temporal_position_encoding_max_len: 2"):
        unet(*tiny_inputs())


@pytest.mark.soak
@pytest.mark.slow
def test_a_compiled_unet_is_one_graph_and_computes_the_same() -> None:
    """Traced and differentiated as for any compiler, but not handed to one, which takes minutes on a CPU."""
    unet = tiny_unet(use_motion_module=True, motion_module_kwargs={"num_attention_heads": 4})
    results = []
    for network in (unet, torch.compile(unet, backend="aot_eager", fullgraph=True)):
        unet.zero_grad()
        loss = network(*tiny_inputs()).sample.square().mean()
        loss.backward()
        results.append([loss.detach(), *(parameter.grad for parameter in unet.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-8)


def test_saved_models_come_back(tmp_path: Path) -> None:
    unet = tiny_unet(use_motion_module=True, motion_module_kwargs={"num_attention_heads": 4})
    unet.save_pretrained(tmp_path)
    loaded = UNet3DConditionModel.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(*tiny_inputs()).sample, unet(*tiny_inputs()).sample)
