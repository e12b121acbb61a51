"""StableSyncNet against the reference: names, shapes, function and gradients."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from latentsync_ray.latentsync.losses import cosine_loss
from latentsync_ray.latentsync.syncnet.model import StableSyncNet

SMALL = {
    "audio_encoder": {
        "in_channels": 1,
        "block_out_channels": [32, 128],
        "downsample_factors": [[20, 13], [4, 2]],
        "attn_blocks": [0, 1],
        "dropout": 0.0,
    },
    "visual_encoder": {
        "in_channels": 6,
        "block_out_channels": [32, 32, 128],
        "downsample_factors": [[1, 2], 4, 1],
        "attn_blocks": [1, 0, 0],
        "dropout": 0.0,
    },
}


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Tensor]:
    return load_file(shared / "golden" / "syncnet_tiny.safetensors")


@pytest.fixture
def syncnet(shared: Path, golden: dict[str, Tensor]) -> StableSyncNet:
    network = StableSyncNet(**json.loads((shared / "golden" / "syncnet_tiny.config.json").read_text()))
    prefix = "state_dict."
    network.load_state_dict({k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)})
    return network.eval()


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_official_state_dict(shared: Path) -> None:
    manifest: dict[str, Any] = json.loads((shared / "golden" / "manifest_syncnet_16_pixel_attn.json").read_text())
    with torch.device("meta"):
        network = StableSyncNet(**manifest["model"])
    assert {name: list(value.shape) for name, value in network.state_dict().items()} == manifest["state_dict"]
    assert sum(p.numel() for p in network.parameters()) == manifest["parameter_count"]


@pytest.mark.parametrize("gain", ["", "0.25", "2"])
@torch.no_grad()
def test_embeddings(syncnet: StableSyncNet, golden: dict[str, Tensor], gain: str) -> None:
    if gain:
        for parameter in syncnet.parameters():
            if parameter.ndim > 1:
                parameter.mul_(float(gain))
    vision_embeds, audio_embeds = syncnet(golden["in.visual"], golden["in.mel"])
    suffix = f"_gain{gain}" if gain else ""
    close(vision_embeds, golden[f"out.vision_embeds{suffix}"])
    close(audio_embeds, golden[f"out.audio_embeds{suffix}"])


@torch.no_grad()
def test_raw_outputs(syncnet: StableSyncNet, golden: dict[str, Tensor]) -> None:
    close(syncnet.visual_encoder(golden["in.visual"]).flatten(1), golden["out.vision_raw"])
    close(syncnet.audio_encoder(golden["in.mel"]).flatten(1), golden["out.audio_raw"])


def test_losses_and_gradients(syncnet: StableSyncNet, golden: dict[str, Tensor], shared: Path) -> None:
    expected = json.loads((shared / "golden" / "syncnet_tiny.expected.json").read_text())
    embeds = syncnet(golden["in.visual"], golden["in.mel"])
    for y in (0, 1):
        losses = cosine_loss(*embeds, torch.full((3,), float(y)))
        torch.testing.assert_close(losses.tolist(), expected[f"y{y}"]["per_sample"], rtol=1e-5, atol=0)

    cosine_loss(*embeds, torch.ones(3)).mean().backward()
    zero = set(expected["analytically_zero_grad"])
    norms = {k: p.grad.norm().item() for k, p in syncnet.named_parameters() if k not in zero}
    assert norms == {
        k: pytest.approx(v, rel=1e-3) for k, v in expected["grad_norms_y1_mean"].items() if k not in zero
    }


@torch.no_grad()
def test_save_and_load(tmp_path: Path) -> None:
    network = StableSyncNet(**SMALL).eval()
    network.save_pretrained(tmp_path)
    loaded = StableSyncNet.from_pretrained(tmp_path)
    assert loaded.config["visual_encoder"] == SMALL["visual_encoder"]
    assert loaded.state_dict().keys() == network.state_dict().keys()
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)

    frames, mel = torch.randn(2, 6, 4, 8), torch.randn(2, 1, 80, 26)
    embeds = network(frames, mel)
    assert [tuple(e.shape) for e in embeds] == [(2, 128), (2, 128)]
    for embed, again in zip(embeds, loaded(frames, mel), strict=True):
        torch.testing.assert_close(embed.norm(dim=1), torch.ones(2))
        # Not bit for bit: mapped from the file, weights lie at other addresses, and kernels heed alignment.
        torch.testing.assert_close(embed, again)


def test_last_norm_with_one_number_a_group() -> None:
    narrow = {**SMALL["visual_encoder"], "block_out_channels": [32, 32, 32]}
    network = StableSyncNet(**{**SMALL, "visual_encoder": narrow})
    with pytest.raises(ValueError, match="every output would be the same"):
        network(torch.zeros(2, 6, 4, 8), torch.zeros(2, 1, 80, 26))


def test_embeddings_of_different_length() -> None:
    network = StableSyncNet(**SMALL)
    with pytest.raises(ValueError, match=r"\(1, 6, 8, 16\) give 512 numbers and mel \(1, 1, 80, 26\) gives 128"):
        network(torch.zeros(1, 6, 8, 16), torch.zeros(1, 1, 80, 26))
