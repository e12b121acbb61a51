"""SyncNet's training by itself: exact restarts, equal micro-batches, decoded frames by turns, and its measure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latentsync_ray.latentsync.data.clips import PreparedClips
from latentsync_ray.latentsync.inputs import drawn_clips
from latentsync_ray.latentsync.losses import sync_loss
from latentsync_ray.latentsync.optimizer import LRSchedulerConfig, OptimizerConfig
from latentsync_ray.latentsync.syncnet.config import SyncNetConfig, load_syncnet
from latentsync_ray.latentsync.syncnet.model import StableSyncNet
from latentsync_ray.latentsync.syncnet.training import SyncTraining, build_syncnet, sync_accuracy
from latentsync_ray.latentsync.syncnet.windows import SyncWindows, held_out_windows

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SyncNetConfig:
    """The demo's, with three short clips."""
    settings = {"num_speakers": 3, "num_validation_speakers": 1, "clips_per_speaker": 1, "num_frames": 48}
    arguments = [f"data.synthetic.{name}={value}" for name, value in settings.items()]
    config = load_syncnet(
        ROOT / "configs" / "demo" / "syncnet.yaml",
        [*arguments, f"data.folder={tmp_path_factory.mktemp('data')}", "batch_size=8", "num_workers=1"],
    )
    assert config.vae is not None and config.audio_encoder is not None
    return replace(config, data=drawn_clips(config.data, config.vae, config.audio_encoder))


@pytest.fixture(scope="module")
def clips(config: SyncNetConfig) -> PreparedClips:
    return PreparedClips.open(config.data.folder)


def training(config: SyncNetConfig, clips: PreparedClips) -> SyncTraining:
    windows = SyncWindows(clips, config.data.num_frames, config.windows_per_clip)
    return SyncTraining(config, windows, torch.device("cpu"))


def test_a_restart_changes_no_bit(config: SyncNetConfig, clips: PreparedClips) -> None:
    """A drawn and a decoded step, then both again from a state; the seed decides where they begin."""
    whole, first = training(config, clips), training(config, clips)
    losses = [whole.step() for _ in range(4)]
    assert [first.step() for _ in range(2)] == losses[:2]
    second = training(config, clips)
    second.load_state({name: tensor.clone() for name, tensor in first.state().items()})
    assert [second.step() for _ in range(2)] == losses[2:]
    expected, found = whole.state(), second.state()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert expected["num_steps_taken"] == 4
    assert [metrics["lr"] for metrics in losses] == pytest.approx([2e-3 * step / 30 for step in range(4)])
    assert training(replace(config, seed=1), clips).step()["loss"] != losses[0]["loss"]


def test_micro_batches_make_the_same_step(config: SyncNetConfig, clips: PreparedClips) -> None:
    constant = replace(config, lr_scheduler=LRSchedulerConfig())
    one = training(constant, clips)
    two = training(replace(constant, gradient_accumulation_steps=2), clips)
    for _ in range(2):
        assert two.step()["loss"] == pytest.approx(one.step()["loss"], rel=1e-5)


def test_every_other_step_shows_decoded_frames(config: SyncNetConfig, clips: PreparedClips) -> None:
    still = replace(config, optimizer=OptimizerConfig(lr=1e-12, weight_decay=0.0), lr_scheduler=LRSchedulerConfig())
    mixed, drawn = (training(c, clips) for c in (still, replace(still, vae=None)))
    losses = [(mixed.step()["loss"], drawn.step()["loss"]) for _ in range(4)]
    assert [pytest.approx(a, rel=1e-6) == b for a, b in losses] == [True, False, True, False]


@pytest.mark.parametrize("share", [0.5, 0.75])
def test_the_loss_pair_by_pair(share: float, config: SyncNetConfig, clips: PreparedClips) -> None:
    """From what the sync loss of stage two sees: each picture of a sample with each of its sounds."""
    own = training(replace(config, off_sync_share=share), clips)
    syncnet, expected = build_syncnet(config), 0.0
    for index in range(2):
        frames, mels = own.windows.train_windows(config.seed, 0, index)
        for i in range(4):
            for j in range(4):
                with torch.no_grad():
                    loss, confidence = sync_loss(syncnet, frames[i : i + 1] / 127.5 - 1, mels[j : j + 1])
                apart = -torch.log1p(-confidence).clamp(min=-100)
                expected += (1 - share) * float(loss) / 8 if i == j else share * float(apart) / 24
    assert own.step()["loss"] == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_accuracy_of_the_demos_syncnet(config: SyncNetConfig, clips: PreparedClips) -> None:
    syncnet = StableSyncNet.from_pretrained(ROOT / "assets" / "demo" / "syncnet").train()
    (held_out,) = held_out_windows(clips, 8, 100)
    figures = sync_accuracy(syncnet, [held_out])
    assert syncnet.training

    def cosine(i: int, j: int) -> float:
        frames: Tensor = held_out[0][i].transpose(0, 1)[:, :, 32:].flatten(0, 1)
        vision_embeds, audio_embeds = syncnet.eval()(frames[None] / 127.5 - 1, held_out[1][j : j + 1])
        return float(F.cosine_similarity(vision_embeds, audio_embeds))

    pairs = {(i, j): cosine(i, j) for i in range(6) for j in range(6)}
    together = [value for (i, j), value in pairs.items() if i == j]
    apart = [value for (i, j), value in pairs.items() if i != j]
    right_together = sum(value > 0.5 for value in together) / 6
    right_apart = sum(value < 0.5 for value in apart) / 30
    assert figures == {
        "balanced_accuracy": pytest.approx((right_together + right_apart) / 2),
        "in_sync_right": pytest.approx(right_together),
        "off_sync_right": pytest.approx(right_apart),
        "in_sync_mean_cosine": pytest.approx(sum(together) / 6, rel=1e-4),
        "off_sync_mean_cosine": pytest.approx(sum(apart) / 30, rel=1e-4),
    }
    assert figures["balanced_accuracy"] > 0.85
    assert sync_accuracy(build_syncnet(config), [held_out])["balanced_accuracy"] < 0.6


def test_a_training_that_diverges_is_named(config: SyncNetConfig, clips: PreparedClips) -> None:
    fast = replace(config, optimizer=OptimizerConfig(lr=1e30), lr_scheduler=LRSchedulerConfig())
    diverging = training(fast, clips)
    diverging.step()
    with pytest.raises(FloatingPointError, match="step 2: the embeddings are not finite"):
        diverging.step()
