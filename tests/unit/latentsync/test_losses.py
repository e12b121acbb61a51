"""The loss terms against the reference; each alone must reach its input with a gradient."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import VideoMAEConfig, VideoMAEModel

from latentsync_ray.config.errors import UserError
from latentsync_ray.latentsync.losses import (
    LPIPS,
    TREPALoss,
    cosine_loss,
    recon_loss,
    sync_loss,
    trepa_feature_loss,
    trepa_model_input,
)
from latentsync_ray.latentsync.syncnet.model import StableSyncNet


@pytest.fixture(scope="module")
def functional(shared: Path) -> dict[str, Tensor]:
    return load_file(shared / "golden" / "functional.safetensors")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def small_syncnet(resolution: int | None = 16) -> StableSyncNet:
    """For two frames of 16 x 16 pixels, lower half, and 26 mel columns."""
    encoder = {"block_out_channels": [32, 128], "attn_blocks": [0, 0], "dropout": 0.0}
    network = StableSyncNet(
        audio_encoder={"in_channels": 1, "downsample_factors": [[20, 13], [4, 2]], **encoder},
        visual_encoder={"in_channels": 6, "downsample_factors": [[2, 4], 4], **encoder},
        resolution=resolution,
    )
    return network.requires_grad_(False)


def small_trepa() -> TREPALoss:
    """For four frames of 16 x 16 pixels."""
    config = VideoMAEConfig(
        image_size=16,
        patch_size=8,
        num_frames=4,
        tubelet_size=2,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.5,
    )
    return TREPALoss(VideoMAEModel(config))


# Each term as a function of (prediction, target), both (2, 3, 4, 24, 24), the whole a scalar.
def recon_term(pred: Tensor, target: Tensor) -> Tensor:
    return recon_loss(pred, target)


def sync_term(pred: Tensor, target: Tensor) -> Tensor:
    return sync_loss(small_syncnet(), pred[:, :, :2], torch.ones(2, 1, 80, 26))[0]


def lpips_term(pred: Tensor, target: Tensor) -> Tensor:
    return LPIPS(channels=(4, 6))(pred.transpose(1, 2).flatten(0, 1), target.transpose(1, 2).flatten(0, 1)).mean()


def trepa_term(pred: Tensor, target: Tensor) -> Tensor:
    return small_trepa()(pred, target)


TERMS = [recon_term, sync_term, lpips_term, trepa_term]


@pytest.mark.parametrize("term", TERMS)
def test_every_term_alone_reaches_the_pixels(term: Callable[[Tensor, Tensor], Tensor]) -> None:
    pred = (torch.rand(2, 3, 4, 24, 24) * 1.8 - 0.9).requires_grad_()
    target = torch.rand(2, 3, 4, 24, 24) * 1.8 - 0.9
    loss = term(pred, target)
    loss.backward()
    assert loss.shape == ()
    assert pred.grad is not None
    assert pred.grad.isfinite().all()
    for video in pred.grad:
        assert video.norm() > 1e-5


@pytest.mark.parametrize("term", TERMS)
def test_every_term_bears_autocast(term: Callable[[Tensor, Tensor], Tensor]) -> None:
    pred, target = torch.rand(2, 2, 3, 4, 24, 24) * 1.8 - 0.9
    torch.manual_seed(1)
    expected = term(pred, target)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = term(pred, target)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=0.05, atol=1e-4)


# --- SyncNet ------------------------------------------------------------------


def test_cosine_loss_is_the_reference(shared: Path) -> None:
    golden = load_file(shared / "golden" / "syncnet_tiny.safetensors")
    embeds = golden["loss.vision_embeds"], golden["loss.audio_embeds"]
    close(cosine_loss(*embeds, torch.ones(6)), golden["loss.y1"])
    close(cosine_loss(*embeds, torch.zeros(6)), golden["loss.y0"])
    close(cosine_loss(*embeds, golden["loss.y_mixed"].flatten()), golden["loss.mixed"])


def test_cosine_loss_of_equal_vectors() -> None:
    vectors = torch.randn(1000, 7)
    assert (nn.functional.cosine_similarity(vectors, vectors) > 1).any()  # what makes the clamp necessary
    torch.testing.assert_close(cosine_loss(vectors, vectors, torch.ones(1000)), torch.zeros(1000), rtol=0, atol=1e-5)


def test_sync_loss_shows_the_lower_half_frame_by_frame() -> None:
    syncnet = small_syncnet()
    pixels = torch.randn(3, 3, 2, 16, 16, requires_grad=True)
    mel = torch.randn(3, 1, 80, 26)
    loss, confidence = sync_loss(syncnet, pixels, mel)

    frames = torch.cat([pixels[:, :, 0, 8:], pixels[:, :, 1, 8:]], dim=1)  # R, G, B of frame 0, then of frame 1
    similarity = nn.functional.cosine_similarity(*syncnet(frames, mel))
    torch.testing.assert_close(loss, -similarity.log().mean())
    torch.testing.assert_close(confidence, similarity.mean().detach())
    assert not confidence.requires_grad

    loss.backward()
    assert pixels.grad is not None
    assert pixels.grad[..., :8, :].abs().max() == 0
    assert pixels.grad[..., 8:, :].abs().max() > 0


def test_sync_loss_resizes_before_it_cuts() -> None:
    syncnet, as_it_is = small_syncnet(), small_syncnet(resolution=None)
    as_it_is.load_state_dict(syncnet.state_dict())
    pixels, mel = torch.randn(1, 3, 2, 33, 33), torch.randn(1, 1, 80, 26)
    frames = nn.functional.interpolate(pixels[0].transpose(0, 1), size=(16, 16), mode="bicubic")
    resized = frames.transpose(0, 1)[None]
    expected = sync_loss(as_it_is, resized[..., 8:, :], mel, lower_half=False)
    torch.testing.assert_close(sync_loss(syncnet, pixels, mel), expected)


# --- LPIPS --------------------------------------------------------------------


def test_lpips_is_the_reference(shared: Path) -> None:
    golden = load_file(shared / "golden" / "lpips_vgg.safetensors")
    lpips = LPIPS()
    prefix = "lin.lin"
    linear = {k.removeprefix("lin."): v for k, v in golden.items() if k.startswith(prefix) and "lins" not in k}
    assert not lpips.load_state_dict(linear, strict=False).unexpected_keys
    convs = [layer for layer in lpips.features if isinstance(layer, nn.Conv2d)]
    assert len(convs) == 13
    for i, conv in enumerate(convs):
        generator = torch.Generator().manual_seed(1000 + i)
        scale = math.sqrt(2 / (9 * conv.in_channels))
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator) * scale)
        conv.bias.copy_(torch.randn(conv.bias.shape, generator=generator) * 0.01)

    pred = golden["input.pred"].requires_grad_()
    distances = lpips(pred, golden["input.target"])
    close(distances, golden["output.lpips"])
    distances.sum().backward()
    assert pred.grad is not None
    expected = golden["output.grad_pred"]
    # The gradient's own scale is far below the general absolute tolerance.
    torch.testing.assert_close(pred.grad, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_lpips_has_torchvisions_names() -> None:
    with torch.device("meta"):
        keys = LPIPS().state_dict().keys()
    convs = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]  # torchvision's vgg16().features
    assert keys == {f"features.{i}.{kind}" for i in convs for kind in ("weight", "bias")} | {
        f"lin{i}.model.1.weight" for i in range(5)
    }


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_lpips_from_published_files(tmp_path: Path, suffix: str) -> None:
    lpips = LPIPS(channels=(4, 5, 6, 7, 7))
    save = save_file if suffix == ".safetensors" else torch.save
    tensors = lpips.state_dict()
    features = {k: v for k, v in tensors.items() if k.startswith("features")}
    vgg16_file, linear_file = tmp_path / f"vgg16{suffix}", tmp_path / f"vgg{suffix}"
    save({**features, "classifier.0.weight": torch.zeros(2, 2)}, vgg16_file)
    save({k: v for k, v in tensors.items() if k.startswith("lin")}, linear_file)

    loaded = LPIPS.from_vgg16(vgg16_file, linear_file)
    loaded.save_pretrained(tmp_path / "folder")
    again = LPIPS.from_pretrained(tmp_path / "folder")
    images = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(loaded(*images), lpips(*images))
    torch.testing.assert_close(again(*images), lpips(*images))
    assert not any(p.requires_grad for p in again.parameters())

    del features["features.28.bias"]
    save(features, vgg16_file)
    with pytest.raises(UserError, match=rf"vgg16{suffix}: features.28.bias must have shape \(7,\), but is missing"):
        LPIPS.from_vgg16(vgg16_file, linear_file)
    with pytest.raises(UserError, match=r"must hold lin0.model.1.weight to lin4"):
        LPIPS.from_vgg16(vgg16_file, vgg16_file)


def test_lpips_bears_dead_features() -> None:
    """Where every channel is zero the unit vector has no gradient of its own; it must not become NaN."""
    lpips = LPIPS(channels=(2, 2))
    for name, parameter in lpips.named_parameters():
        if name.endswith("bias"):
            parameter.fill_(-0.15)
    pred = (torch.rand(4, 3, 16, 16) * 2 - 1).requires_grad_()
    dead = [(features == 0).all(dim=1).any() for features in lpips._unit_features(pred)]
    assert any(dead)
    lpips(pred, torch.rand(4, 3, 16, 16)).sum().backward()
    assert pred.grad is not None
    assert pred.grad.isfinite().all()


# --- TREPA --------------------------------------------------------------------


def test_trepa_is_the_reference(functional: dict[str, Tensor]) -> None:
    loss = trepa_feature_loss(functional["trepa.feat_fake"], functional["trepa.feat_real"])
    close(loss, functional["trepa.loss"][0])
    video = trepa_model_input(functional["trepa.video_fake"], 224)
    assert video.shape == (3, 3, 2, 224, 224)
    close(video[..., ::16, ::16], functional["trepa.model_input_fake_stride16"])


def test_trepa_compares_pooled_tokens() -> None:
    trepa = small_trepa()
    pred, target = torch.rand(2, 3, 3, 4, 16, 16) * 2 - 1
    tokens = [trepa.model((x / 2 + 0.5).transpose(1, 2)).last_hidden_state for x in (pred, target)]
    assert tokens[0].shape == (3, 2 * 2 * 2, 16)
    expected = trepa_feature_loss(*(t.mean(dim=1) for t in tokens))
    torch.testing.assert_close(trepa(pred, target), expected)
    assert trepa(pred, pred) == 0


def test_trepa_stays_frozen(tmp_path: Path) -> None:
    trepa = small_trepa()
    nn.Sequential(trepa).train()
    assert not any(module.training for module in trepa.modules())
    assert not any(p.requires_grad for p in trepa.parameters())

    trepa.model.save_pretrained(tmp_path)
    videos = torch.rand(2, 1, 3, 4, 20, 20)
    torch.testing.assert_close(TREPALoss.from_pretrained(tmp_path)(*videos), trepa(*videos))


def test_trepa_wants_the_models_frame_count() -> None:
    with pytest.raises(ValueError, match="takes 4 frames, but the pixels have 6"):
        small_trepa()(torch.zeros(1, 3, 6, 16, 16), torch.zeros(1, 3, 6, 16, 16))
