"""Makes the demo's small models: `python assets/make_assets.py` (minutes on two cores, no network).

An autoencoder and a SyncNet are trained on drawn faces; the audio encoder, LPIPS and the video encoder get
seeded random weights on a healthy scale. Speakers are shared out by seed: TRAIN_SEED to train, HELD_OUT_SEED for
the figures; the demo's recipe draws its own (seed 0). Writes demo/<name>/ and demo/figures.json.
"""

import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from transformers import VideoMAEConfig, VideoMAEModel, WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from latentsync_ray.latentsync.data.media import SAMPLE_RATE, first_mel_column, mel_spectrogram, num_mel_columns
from latentsync_ray.latentsync.data.synthetic import synthetic_clips
from latentsync_ray.latentsync.losses import LPIPS, TREPALoss, cosine_loss
from latentsync_ray.latentsync.models.autoencoder import decode_latents, encode_latents, load_autoencoder
from latentsync_ray.latentsync.syncnet.model import StableSyncNet
from latentsync_ray.latentsync.syncnet.training import sync_accuracy

DEMO = Path(__file__).parent / "demo"
TRAIN_SEED, HELD_OUT_SEED = 1000, 2000
TRAIN_CLIPS = 240, 50  # speakers, and frames of each one's clip
RESOLUTION = 64
NUM_FRAMES = 8  # of SyncNet's and the video encoder's windows
MOUTH = (slice(38, 58), slice(16, 48))  # rows and columns around every mouth

AUTOENCODER_STEPS, AUTOENCODER_LR, AUTOENCODER_BATCH = 1500, 3e-3, 16
SYNCNET_STEPS, SYNCNET_DECODED_STEPS, SYNCNET_LR = 250, 280, 2e-3
CLIPS_PER_BATCH, PLACES_PER_CLIP, FRAMES_BETWEEN_PLACES = 8, 4, 5
MEL_WINDOW = num_mel_columns(NUM_FRAMES)


@dataclass(frozen=True)
class Clips:
    """Clips of one length. Frames are uint8 (N, F, 3, H, W), mels float32 (N, 80, M)."""

    frames: Tensor
    mels: Tensor

    @classmethod
    def draw(cls, num_speakers: int, num_frames: int, seed: int) -> "Clips":
        """Draws one clip of each speaker."""
        clips = list(synthetic_clips(num_speakers, 1, num_frames, RESOLUTION, seed))
        frames = torch.from_numpy(np.stack([clip.frames for clip in clips])).permute(0, 1, 4, 2, 3)
        mels = torch.from_numpy(np.stack([mel_spectrogram(clip.wave) for clip in clips]))
        return cls(frames.contiguous(), mels)

    def windows(self, clip: int, starts: list[int]) -> tuple[Tensor, Tensor]:
        """SyncNet's inputs: lower halves (P, 24, 32, 64) in [-1, 1] and mel windows (P, 1, 80, 26)."""
        lower_halves = self.frames[clip, :, :, RESOLUTION // 2 :]
        images = torch.stack([lower_halves[s : s + NUM_FRAMES].flatten(0, 1) for s in starts])
        columns = [first_mel_column(s) for s in starts]
        mels = torch.stack([self.mels[clip, None, :, c : c + MEL_WINDOW] for c in columns])
        return images.float() / 127.5 - 1, mels


def main() -> None:
    """Makes all models, then the figures. Autoencoder and SyncNet begin side by side, each on one thread."""
    start = time.perf_counter()
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=set_up) as pool:
        jobs = pool.submit(make_autoencoder, DEMO / "autoencoder"), pool.submit(begin_syncnet, DEMO / "syncnet")
        for job in jobs:
            job.result()
    set_up()
    finish_syncnet(DEMO / "syncnet", DEMO / "autoencoder")

    held_out = Clips.draw(24, 75, HELD_OUT_SEED)
    make_audio_encoder(DEMO / "audio_encoder")
    make_lpips(DEMO / "lpips", held_out)
    make_video_encoder(DEMO / "video_encoder")
    figures = json.dumps(measure(held_out), indent=2)
    (DEMO / "figures.json").write_text(figures + "\n")
    print(figures, f"{time.perf_counter() - start:.0f} seconds", sep="\n")


def set_up() -> None:
    """Makes this process deterministic. The number of threads is part of the result: it splits the sums."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


# --- autoencoder --------------------------------------------------------------


def make_autoencoder(folder: Path) -> None:
    """Trains on single frames, mouths weighted three times; sets the scaling factor to 1 / std of the latents.

    The encoder has no residual block at full resolution and the decoder none either: that is where the time goes.
    """
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    autoencoder = AutoencoderTiny(
        encoder_block_out_channels=(16, 16, 16, 16),
        decoder_block_out_channels=(16, 16, 16, 16),
        num_encoder_blocks=(0, 1, 2, 2),
        num_decoder_blocks=(2, 2, 1, 0),
    )
    start_as_resizing(autoencoder)
    frames = Clips.draw(*TRAIN_CLIPS, TRAIN_SEED).frames[:, ::5].flatten(0, 1)
    weight = torch.ones(RESOLUTION, RESOLUTION)
    weight[MOUTH] = 3
    weight /= weight.mean()

    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=AUTOENCODER_LR, weight_decay=0)
    for step in range(AUTOENCODER_STEPS):
        set_lr(optimizer, AUTOENCODER_LR, step, AUTOENCODER_STEPS)
        chosen = torch.randint(len(frames), (AUTOENCODER_BATCH,), generator=generator)
        pixels = frames[chosen].float() / 127.5 - 1
        error = autoencoder.decode(autoencoder.encode(pixels).latents).sample - pixels
        loss = (weight * (error.square() + 0.05 * error.abs())).mean()
        take_step(autoencoder, optimizer, loss, "autoencoder", step)

    autoencoder.requires_grad_(False)
    latents = torch.cat([autoencoder.encode(b.float() / 127.5 - 1).latents for b in frames.split(64)])
    autoencoder.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    autoencoder.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["block_out_channels"]  # diffusers writes it, and warns of it when it reads it
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


@torch.no_grad()
def start_as_resizing(autoencoder: AutoencoderTiny) -> None:
    """Initialises the autoencoder so that three latents carry every eighth pixel's colour, and out again.

    From there it learns details. From a plain start it first loses the colours and takes long to find them again.
    """
    rgb = range(3)
    for module in autoencoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for block in [*autoencoder.encoder.layers, *autoencoder.decoder.layers]:
        if isinstance(block, nn.Conv2d):
            block.weight[:3] = 0
            block.weight[rgb, rgb, 1, 1] = 1
        elif hasattr(block, "fuse"):  # a residual block
            block.conv[-1].weight *= 0.2
            block.conv[-1].weight[:3] = 0
    latents_out, latents_in = autoencoder.encoder.layers[-1], autoencoder.decoder.layers[0]
    latents_out.weight[rgb, rgb, 1, 1] = 3
    latents_out.bias[:3] = -1.5
    latents_out.weight[3] *= 0.3
    latents_in.weight[rgb, rgb, 1, 1] = 1 / 3
    latents_in.bias[:3] = 0.5
    autoencoder.decoder.layers[-1].weight[:, 3:] *= 0.05


@torch.no_grad()
def round_trip(autoencoder: AutoencoderTiny, frames: Tensor, noise: float = 0.0) -> Tensor:
    """Encodes and decodes frames uint8 (N, F, 3, H, W), with a little noise on the latents (in their std)."""
    generator = torch.Generator().manual_seed(2)
    decoded = []
    for batch in frames.flatten(0, 1).split(50):
        latents = encode_latents(autoencoder, batch.float() / 127.5 - 1)
        latents += noise * torch.randn(latents.shape, generator=generator)
        pixels = decode_latents(autoencoder, latents)
        decoded.append(((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))
    return torch.cat(decoded).view(frames.shape)


# --- SyncNet ------------------------------------------------------------------


def begin_syncnet(folder: Path) -> None:
    """Trains on drawn frames."""
    torch.manual_seed(0)
    widths, plain = [32, 32, 32, 64, 64], {"attn_blocks": [0] * 5, "dropout": 0.0}
    audio_encoder = {"in_channels": 1, "block_out_channels": widths, **plain}
    visual_encoder = {"in_channels": 3 * NUM_FRAMES, "block_out_channels": widths, **plain}
    syncnet = StableSyncNet(
        audio_encoder=audio_encoder | {"downsample_factors": [[2, 1], 2, 2, [2, 1], [2, 3]]},
        visual_encoder=visual_encoder | {"downsample_factors": [[1, 2], 2, 2, 2, 2]},
    )
    train_syncnet(syncnet, [Clips.draw(*TRAIN_CLIPS, TRAIN_SEED)], SYNCNET_STEPS, off_sync_weight=1, seed=1)
    syncnet.save_pretrained(folder)


def finish_syncnet(folder: Path, autoencoder_folder: Path) -> None:
    """Trains on drawn and decoded frames by turns: what it will judge comes out of the decoder.

    Off-sync pairs weigh twice as much now. Entries of the embeddings are never below 0, so similarities err
    upwards: at equal weights 99 % of the in-sync pairs but 83 % of the others came to lie on their side of 0.5.
    """
    syncnet, autoencoder = StableSyncNet.from_pretrained(folder), load_autoencoder(autoencoder_folder)
    drawn = Clips.draw(*TRAIN_CLIPS, TRAIN_SEED)
    decoded = Clips(round_trip(autoencoder, drawn.frames, noise=0.1), drawn.mels)
    train_syncnet(syncnet, [decoded, drawn], SYNCNET_DECODED_STEPS, off_sync_weight=2, seed=2)
    syncnet.register_to_config(_name_or_path="syncnet")  # not where it lay on this machine
    syncnet.save_pretrained(folder)


def train_syncnet(
    syncnet: StableSyncNet, sources: list[Clips], num_steps: int, off_sync_weight: float, seed: int
) -> None:
    """Trains on each source by turns.

    A batch holds several places of several clips; every window of frames is paired with its own sound, that of
    the other places of its clip and, weighing a quarter of those, that of other clips.
    """
    syncnet.train()
    generator = torch.Generator().manual_seed(seed)
    clip_of = torch.arange(CLIPS_PER_BATCH * PLACES_PER_CLIP) // PLACES_PER_CLIP
    picture, sound = torch.cartesian_prod(*[torch.arange(len(clip_of))] * 2).T
    in_sync, same_clip = picture == sound, clip_of[picture] == clip_of[sound]
    weight = torch.where(in_sync, 1 / in_sync.sum(), 0.8 * off_sync_weight / (same_clip & ~in_sync).sum())
    weight[~same_clip] = 0.2 * off_sync_weight / (~same_clip).sum()

    # Places lie a multiple of FRAMES_BETWEEN_PLACES apart, anywhere in the clip.
    last_start = sources[0].frames.shape[1] - NUM_FRAMES
    optimizer = torch.optim.AdamW(syncnet.parameters(), lr=SYNCNET_LR)
    for step in range(num_steps):
        set_lr(optimizer, SYNCNET_LR, step, num_steps)
        clips = sources[step % len(sources)]
        windows = []
        for clip in torch.randperm(len(clips.frames), generator=generator)[:CLIPS_PER_BATCH].tolist():
            offset = int(torch.randint(FRAMES_BETWEEN_PLACES, (), generator=generator))
            places = torch.arange(offset, last_start + 1, FRAMES_BETWEEN_PLACES)
            chosen = places[torch.randperm(len(places), generator=generator)[:PLACES_PER_CLIP]]
            windows.append(clips.windows(clip, chosen.tolist()))
        images, mels = (torch.cat(parts) for parts in zip(*windows, strict=True))
        images = images * (1 + 0.1 * torch.randn(len(images), 1, 1, 1, generator=generator))
        mels = mels + 0.3 * torch.randn(len(mels), 1, 1, 1, generator=generator)
        vision_embeds, audio_embeds = syncnet(images, mels)
        loss = (weight * cosine_loss(vision_embeds[picture], audio_embeds[sound], in_sync.float())).sum()
        take_step(syncnet, optimizer, loss, "syncnet", step)


def set_lr(optimizer: torch.optim.Optimizer, lr: float, step: int, num_steps: int) -> None:
    """Warms up for 30 steps, stays, and falls to nothing over the last three fifths."""
    for group in optimizer.param_groups:
        group["lr"] = lr * min(1, (step + 1) / 30, (num_steps - step) / (0.6 * num_steps))


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, name: str, step: int) -> None:
    """One step of the optimizer, gradients clipped to norm 1."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    if (step + 1) % 50 == 0:
        print(f"{name} step {step + 1}: loss {loss.item():.4f}", flush=True)


# --- frozen random networks ---------------------------------------------------


@torch.no_grad()
def draw_weights(model: nn.Module, seed: int) -> None:
    """Draws every weight of a linear or convolutional layer so that variances are kept, and zeroes biases.

    Transformers' own start (std 0.02) would let hardly anything of the input through.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            fan_in = module.weight[0].numel()
            module.weight.copy_(torch.randn(module.weight.shape, generator=generator) / math.sqrt(fan_in))
            if module.bias is not None:
                module.bias.zero_()


@torch.no_grad()
def make_audio_encoder(folder: Path) -> None:
    """A tiny Whisper encoder for stretches of 5 s whose states vary with a standard deviation near 1, about 0."""
    config = WhisperConfig(
        num_mel_bins=80,
        d_model=32,
        encoder_layers=4,
        encoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=64,
        max_source_positions=250,
        architectures=["WhisperEncoder"],
    )
    encoder = WhisperEncoder(config).eval()
    draw_weights(encoder, seed=3)
    encoder.embed_positions.weight *= 0.1  # where in a clip a sound occurs matters little to the lips
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=5)
    wave = next(synthetic_clips(1, 1, 125, 16, HELD_OUT_SEED)).wave
    features = extractor(wave, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
    for conv in (encoder.conv1, encoder.conv2):
        features_in = features
        features = nn.functional.gelu(conv(features_in))
        conv.weight /= features.std(dim=2).mean()
        features = nn.functional.gelu(conv(features_in))
    states = features.transpose(1, 2) + encoder.embed_positions.weight
    encoder.embed_positions.weight -= states.mean(dim=1)
    states = states - states.mean(dim=1)
    for layer in encoder.layers:
        states = layer(states, attention_mask=None)
        layer.fc2.bias -= states.mean(dim=(0, 1))
        states = states - states.mean(dim=1)
    encoder.save_pretrained(folder)
    extractor.save_pretrained(folder)


@torch.no_grad()
def make_lpips(folder: Path, clips: Clips) -> None:
    """A narrow VGG16 of random weights; every tap adds 0.09 to the distance of two different faces."""
    lpips = LPIPS(channels=(8, 16, 32, 32, 32))
    draw_weights(lpips.features, seed=4)
    for parameter in lpips.features.parameters():
        parameter *= math.sqrt(2)  # ReLU halves the variance
    linear = [lpips.get_submodule(f"lin{tap}.model.1").weight for tap in range(5)]
    pixels = clips.frames[:, 0].float() / 127.5 - 1
    for weight in linear:
        weight.zero_()
    shares = []
    for weight in linear:
        weight.fill_(1)
        shares.append(0.09 / lpips(pixels, pixels.roll(1, 0)).mean())
        weight.zero_()
    for weight, share in zip(linear, shares, strict=True):
        weight.fill_(share)
    lpips.save_pretrained(folder)


def make_video_encoder(folder: Path) -> None:
    """A small VideoMAE of random weights."""
    config = VideoMAEConfig(
        image_size=RESOLUTION,
        patch_size=16,
        num_frames=NUM_FRAMES,
        tubelet_size=2,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
    )
    model = VideoMAEModel(config)
    draw_weights(model, seed=5)
    with torch.no_grad():  # middle grey is nothing, and the content outweighs the positions
        projection = model.embeddings.patch_embeddings.projection
        projection.weight *= 4
        projection.bias.copy_(-0.5 * projection.weight.sum(dim=(1, 2, 3, 4)))
    model.save_pretrained(folder)


# --- figures ------------------------------------------------------------------


def measure(clips: Clips) -> dict[str, object]:
    """Figures of all models on held-out clips."""
    autoencoder = load_autoencoder(DEMO / "autoencoder")
    syncnet = StableSyncNet.from_pretrained(DEMO / "syncnet").requires_grad_(False)
    decoded = Clips(round_trip(autoencoder, clips.frames), clips.mels)
    lpips, trepa = LPIPS.from_pretrained(DEMO / "lpips"), TREPALoss.from_pretrained(DEMO / "video_encoder")
    pixels, decoded_pixels = (c.frames[:, :NUM_FRAMES].float() / 127.5 - 1 for c in (clips, decoded))
    latents = encode_latents(autoencoder, pixels.flatten(0, 1))
    files = {path.name: path for path in sorted(DEMO.iterdir()) if path.is_dir()}
    with torch.no_grad():
        losses = {
            "lpips_other_face": lpips(pixels[:, 0], pixels[:, 0].roll(1, 0)).mean().item(),
            "lpips_decoded": lpips(pixels[:, 0], decoded_pixels[:, 0]).mean().item(),
            "trepa_other_face": trepa(pixels.transpose(1, 2), pixels.roll(1, 0).transpose(1, 2)).item(),
            "trepa_decoded": trepa(pixels.transpose(1, 2), decoded_pixels.transpose(1, 2)).item(),
        }
    return {
        "autoencoder": {
            "psnr_db": round(psnr(clips.frames, decoded.frames), 2),
            "mouth_psnr_db": round(psnr(clips.frames[..., *MOUTH], decoded.frames[..., *MOUTH]), 2),
            "scaled_latents_mean": round(latents.mean().item(), 3),
            "scaled_latents_std": round(latents.std().item(), 3),
            "decode_and_backward_16_frames_cpu_ms": time_autoencoder(autoencoder),
        },
        "syncnet": {
            "drawn": accuracy(syncnet, clips),
            "decoded": accuracy(syncnet, decoded),
            "forward_and_backward_batch_2_cpu_ms": time_syncnet(syncnet),
        },
        "losses": {name: round(value, 4) for name, value in losses.items()},
        "bytes": {name: sum(f.stat().st_size for f in folder.iterdir()) for name, folder in files.items()},
    }


def psnr(frames: Tensor, others: Tensor) -> float:
    """Mean over the frames of the peak signal-to-noise ratio of uint8 pictures (N, F, 3, H, W), in dB."""
    mse = (frames.float() - others.float()).square().mean(dim=(2, 3, 4))
    return (10 * torch.log10(255**2 / mse)).mean().item()


def accuracy(syncnet: StableSyncNet, clips: Clips) -> dict[str, float]:
    """Shares of pairs told rightly, in windows that follow each other without overlap."""
    starts = list(range(0, clips.frames.shape[1] - NUM_FRAMES + 1, NUM_FRAMES))
    windows = []
    for clip, frames in enumerate(clips.frames.transpose(1, 2)):
        whole_frames = torch.stack([frames[:, s : s + NUM_FRAMES] for s in starts])
        windows.append((whole_frames, clips.windows(clip, starts)[1]))
    return {name: round(value, 4) for name, value in sync_accuracy(syncnet, windows).items()}


def time_autoencoder(autoencoder: AutoencoderTiny) -> float:
    """Times decoding 16 frames and going back to the latents."""
    latents = torch.randn(16, 4, 8, 8, requires_grad=True)
    return best_cpu_ms(lambda: autoencoder.decode(latents).sample.square().mean().backward())


def time_syncnet(syncnet: StableSyncNet) -> float:
    """Times comparing two windows and going back to the pixels."""
    images = torch.randn(2, 3 * NUM_FRAMES, RESOLUTION // 2, RESOLUTION, requires_grad=True)
    mels = torch.randn(2, 1, 80, MEL_WINDOW)
    return best_cpu_ms(lambda: cosine_loss(*syncnet(images, mels), torch.ones(2)).mean().backward())


def best_cpu_ms(function: Callable[[], object]) -> float:
    """Milliseconds of processor time (one thread) of the fastest of thirty calls."""
    seconds = []
    for _ in range(30):
        start = time.process_time()
        function()
        seconds.append(time.process_time() - start)
    return round(1000 * min(seconds), 1)


if __name__ == "__main__":
    main()
