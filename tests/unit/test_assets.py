"""The committed demo models: they load, and do on fresh faces what assets/README.md says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from transformers import VideoMAEModel, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from latentsync_ray.latentsync.data.media import (
    SAMPLE_RATE,
    Clip,
    first_mel_column,
    mel_spectrogram,
    num_mel_columns,
    to_pixels,
)
from latentsync_ray.latentsync.data.synthetic import synthetic_clips
from latentsync_ray.latentsync.losses import LPIPS, TREPALoss, sync_loss
from latentsync_ray.latentsync.models.autoencoder import decode_latents, encode_latents, load_autoencoder
from latentsync_ray.latentsync.syncnet.model import StableSyncNet

ASSETS = Path(__file__).resolve().parents[2] / "assets"
DEMO = ASSETS / "demo"
FIGURES = json.loads((DEMO / "figures.json").read_text())
FRESH_SEED = 3000  # neither trained on nor measured when the models were made
NUM_FRAMES = 8


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return list(synthetic_clips(12, 1, 64, 64, FRESH_SEED))


@pytest.fixture(scope="module")
def pixels(clips) -> Tensor:
    """(N, F, 3, H, W) in [-1, 1]."""
    return to_pixels(torch.from_numpy(np.stack([clip.frames for clip in clips]))).movedim(-1, 2)


@pytest.fixture(scope="module")
def decoded(pixels) -> Tensor:
    """The same through the autoencoder."""
    vae = load_autoencoder(DEMO / "autoencoder")
    with torch.no_grad():
        return decode_latents(vae, encode_latents(vae, pixels.flatten(0, 1))).clamp(-1, 1).view(pixels.shape)


@pytest.mark.parametrize(
    ("name", "network_class"),
    [
        ("autoencoder", AutoencoderTiny),
        ("syncnet", StableSyncNet),
        ("audio_encoder", WhisperEncoder),
        ("lpips", LPIPS),
        ("video_encoder", VideoMAEModel),
    ],
)
def test_every_weight_is_there_and_none_too_many(name, network_class):
    network, loading = network_class.from_pretrained(DEMO / name, output_loading_info=True)
    assert not any(loading.values()), loading
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    assert {file.suffix for file in (DEMO / name).iterdir()} == {".json", ".safetensors"}
    config = json.loads((DEMO / name / "config.json").read_text())
    assert not Path(config.get("_name_or_path", "")).is_absolute()  # no trace of where it was made


def test_the_models_are_small():
    sizes = {
        path.name: sum(file.stat().st_size for file in path.iterdir()) for path in DEMO.iterdir() if path.is_dir()
    }
    assert sizes == FIGURES["bytes"]
    assert sizes["autoencoder"] + sizes["syncnet"] <= 3_000_000
    assert sum(sizes.values()) <= 4_000_000


def test_autoencoder_gives_faces_back(pixels, decoded):
    def psnr_db(rows: slice, columns: slice) -> float:
        mse = ((pixels - decoded)[..., rows, columns] / 2).square().mean(dim=(2, 3, 4))
        return (-10 * mse.log10()).mean().item()

    claimed = FIGURES["autoencoder"]
    assert claimed["psnr_db"] > 26
    assert psnr_db(slice(None), slice(None)) == pytest.approx(claimed["psnr_db"], abs=1.0)
    assert psnr_db(slice(38, 58), slice(16, 48)) == pytest.approx(claimed["mouth_psnr_db"], abs=1.0)


def test_scaled_latents_have_unit_variance(pixels):
    latents = encode_latents(load_autoencoder(DEMO / "autoencoder"), pixels[:, ::8].flatten(0, 1))
    assert latents.shape[1:] == (4, 8, 8)
    assert latents.std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("kind", ["drawn", "decoded"])
def test_syncnet_tells_in_sync_from_off_sync(kind, clips, request):
    """Windows without overlap; off-sync are a window's frames with each other window's sound of the same clip."""
    frames = request.getfixturevalue({"drawn": "pixels", "decoded": "decoded"}[kind])
    syncnet = StableSyncNet.from_pretrained(DEMO / "syncnet").eval()
    starts = range(0, frames.shape[1], NUM_FRAMES)
    in_sync, off_sync = [], []
    for clip, clip_frames in zip(clips, frames, strict=True):
        mel = torch.from_numpy(mel_spectrogram(clip.wave))
        width = num_mel_columns(NUM_FRAMES)
        mels = torch.stack([mel[None, :, c : c + width] for c in map(first_mel_column, starts)])
        lower_halves = clip_frames.reshape(len(starts), 3 * NUM_FRAMES, 64, 64)[:, :, 32:]
        with torch.no_grad():
            vision_embeds, audio_embeds = syncnet(lower_halves, mels)
        similarity = vision_embeds @ audio_embeds.T
        own = torch.eye(len(starts), dtype=torch.bool)
        in_sync.append(similarity[own])
        off_sync.append(similarity[~own])
    together, apart = torch.cat(in_sync), torch.cat(off_sync)
    accuracy = ((together > 0.5).float().mean() + (apart < 0.5).float().mean()).item() / 2
    assert accuracy > 0.92
    assert accuracy == pytest.approx(FIGURES["syncnet"][kind]["balanced_accuracy"], abs=0.04)
    assert together.mean() > apart.mean() + 0.5


def test_sync_loss_leads_from_a_wrong_mouth_towards_the_right_one(clips, decoded):
    """Following its gradient on the pixels of off-sync frames raises the confidence."""
    syncnet = StableSyncNet.from_pretrained(DEMO / "syncnet").eval().requires_grad_(False)
    mel = torch.from_numpy(np.stack([mel_spectrogram(clip.wave) for clip in clips]))[:, None, :, :26]
    right, wrong = (decoded[:, s : s + NUM_FRAMES].transpose(1, 2).clone() for s in (0, 16))
    wrong.requires_grad_(True)
    loss, confidence = sync_loss(syncnet, wrong, mel)
    loss.backward()
    assert wrong.grad is not None
    lower_half_only = wrong.grad[..., :32, :]
    assert lower_half_only.abs().max() == 0
    better = wrong.detach() - 0.02 * wrong.grad.sign()
    assert sync_loss(syncnet, better, mel)[1] > confidence
    assert sync_loss(syncnet, right, mel)[1] > confidence + 0.5


def test_audio_states_vary_with_the_sound(clips):
    encoder = WhisperEncoder.from_pretrained(DEMO / "audio_encoder").eval()
    extractor = WhisperFeatureExtractor.from_pretrained(DEMO / "audio_encoder")
    features = extractor(clips[0].wave, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
    assert features.shape == (1, 80, 500)
    with torch.no_grad():
        states = torch.stack(encoder(features, output_hidden_states=True).hidden_states)[:, 0, :128]
    assert states.shape == (5, 128, 32)
    over_time = states.std(dim=1).mean(dim=1)
    assert ((over_time > 0.4) & (over_time < 2.5)).all(), over_time


def test_losses_tell_faces_and_videos_apart(pixels, decoded):
    lpips, trepa = LPIPS.from_pretrained(DEMO / "lpips"), TREPALoss.from_pretrained(DEMO / "video_encoder")
    other_face = lpips(pixels[:, 0], pixels[:, 0].roll(1, 0)).mean().item()
    assert 0.3 < other_face < 0.6
    assert lpips(pixels[:, 0], decoded[:, 0]).mean().item() < 0.6 * other_face
    videos, other_videos = (pixels[:, s : s + NUM_FRAMES].transpose(1, 2) for s in (0, 16))
    same_face_elsewhere, other = trepa(videos, other_videos).item(), trepa(videos, videos.roll(1, 0)).item()
    assert 0 < same_face_elsewhere < other


def test_readme_quotes_the_figures():
    text = (ASSETS / "README.md").read_text()
    shares = ("balanced_accuracy", "in_sync_right", "off_sync_right")
    percentages = [100 * FIGURES["syncnet"][kind][share] for kind in ("drawn", "decoded") for share in shares]
    decibels = [FIGURES["autoencoder"][figure] for figure in ("psnr_db", "mouth_psnr_db")]
    assert [f"{value:.1f}" for value in percentages + decibels if f"{value:.1f}" not in text] == []
