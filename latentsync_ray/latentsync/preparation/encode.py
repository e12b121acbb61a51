"""What the frozen networks make of a clip: all of it that can be computed once, before training."""

import hashlib
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.utils.logging import disable_progress_bar

from latentsync_ray.config.errors import UserError
from latentsync_ray.latentsync.data.clips import FORMAT, ClipRecord, Index, save_clip
from latentsync_ray.latentsync.data.media import (
    AUDIO_STATES_PER_SECOND,
    FPS,
    SAMPLE_RATE,
    Clip,
    Floats,
    face_mask,
    mel_spectrogram,
    read_mask,
    resize_frame,
    to_pcm,
    to_pixels,
)
from latentsync_ray.latentsync.models.autoencoder import (
    Autoencoder,
    encode_posterior,
    latent_factor,
    latent_scaling,
    load_autoencoder,
    weights_sha256,
)

# A clip with fewer frames gives no window to train on.
MIN_FRAMES = 8

CPU_BATCH_PIXELS = 256 * 256
"""On a CPU so much fits its caches: twice as fast as 16 times as much (AutoencoderTiny, 256 pixels)."""


class AudioEncoder:
    """Whisper's encoder, giving every layer's states rather than the last one's alone.

    Attributes:
        network: the frozen encoder, float32.
        shape: (L, D), how many states at a time (the first layer's input, each layer's output) and their width.
    """

    def __init__(self, source: str | Path):
        """Loads it.

        Args:
            source: a folder or a hub id, such as "openai/whisper-tiny", of a whole Whisper or its encoder alone.

        Raises:
            UserError: if there is no such model, it lacks weights, or it does not give 50 states a second.
        """
        source = str(source)
        disable_progress_bar()  # of the loading of weights: ours follows
        try:
            self._extractor = WhisperFeatureExtractor.from_pretrained(source)
            encoder_alone = WhisperConfig.from_pretrained(source).architectures == ["WhisperEncoder"]
            network_class = WhisperEncoder if encoder_alone else WhisperModel
            network, loading = network_class.from_pretrained(source, output_loading_info=True)
        except (OSError, ValueError, SafetensorError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"audio encoder {source}: cannot be loaded ({reason}); give a folder or hub id of a Whisper model"
            ) from error
        if loading["missing_keys"]:
            raise UserError(
                f"audio encoder {source}: weights lack {min(loading['missing_keys'])}; give a Whisper model"
            )
        self.network = (network if encoder_alone else network.encoder).float().requires_grad_(False).eval()
        config = self.network.config
        if config.max_source_positions != self._extractor.chunk_length * AUDIO_STATES_PER_SECOND:
            raise UserError(
                f"audio encoder {source}: max_source_positions must be {AUDIO_STATES_PER_SECOND} times chunk_length"
                f" ({self._extractor.chunk_length}), is {config.max_source_positions}; mend its config.json"
            )
        self.shape = (config.encoder_layers + 1, config.d_model)

        # transformers' own hidden_states end after the final normalisation, so inputs are listened to instead.
        self._states: list[Tensor] = []
        for module in [*self.network.layers, self.network.layer_norm]:
            module.register_forward_pre_hook(lambda _, args: self._states.append(args[0]))

    @torch.inference_mode()
    def __call__(self, wave: Floats) -> Tensor:
        """Encodes a wave (N,) at 16 kHz in chunks of the network's own length.

        Returns:
            float32 (N // 320, L, D), 50 a second: the input of each layer and of the final normalisation, as the
            reference's Whisper collects them (LatentSync, latentsync/whisper/whisper/model.py `AudioEncoder`).
        """
        chunks = []
        for start in range(0, len(wave), self._extractor.n_samples):
            chunk = wave[start : start + self._extractor.n_samples]
            mel = self._extractor(chunk, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
            self._states.clear()
            self.network(mel.to(self.network.device))
            chunks.append(torch.cat(self._states).transpose(0, 1).cpu())
        return torch.cat(chunks)[: len(wave) * AUDIO_STATES_PER_SECOND // SAMPLE_RATE]


class ClipEncoder:
    """The frozen networks and the mask with which a set is prepared, on the GPU if there is one.

    Attributes:
        index: what the set's index says, but for its source and its clips.
        mask_file: the bytes of the set's mask.safetensors.
    """

    def __init__(self, vae: str | Path, audio_encoder: str | Path, resolution: int, mask: Path | None):
        """Loads the networks.

        Args:
            vae: folder or hub id of the autoencoder.
            audio_encoder: folder or hub id of a Whisper model.
            resolution: height and width in pixels to which frames are resized.
            mask: picture of the part to generate (black); None draws our own.

        Raises:
            UserError: if an argument does not fit.
        """
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._vae, self._audio_encoder = load_autoencoder(vae).to(device), AudioEncoder(audio_encoder)
        self._vae.to(memory_format=torch.channels_last)  # a third faster, on CPUs too
        self._audio_encoder.network.to(device)
        factor = latent_factor(self._vae)
        if resolution <= 0 or resolution % factor:
            raise UserError(f"resolution: must be a multiple of {factor}, is {resolution}; give another")
        self._mask = face_mask(resolution) if mask is None else read_mask(mask, resolution)
        self.mask_file: bytes = save({"mask": self._mask})
        self.index = Index(
            format=FORMAT,
            source="",
            resolution=resolution,
            fps=FPS,
            latent_shape=[self._vae.config.latent_channels, resolution // factor, resolution // factor],
            audio_shape=list(self._audio_encoder.shape),
            mask_sha256=hashlib.sha256(self.mask_file).hexdigest(),
            vae_sha256=weights_sha256(self._vae),
            audio_encoder_sha256=weights_sha256(self._audio_encoder.network),
            clips=[],
            posterior_scaling=list(latent_scaling(self._vae)) if isinstance(self._vae, AutoencoderKL) else None,
        )

    def encode(self, clip: Clip, folder: Path) -> ClipRecord:
        """Writes what the networks make of a clip into the folder of a set. Returns its record for the index.

        Raises:
            UserError: if the clip cannot be used.
        """
        if len(clip.frames) < MIN_FRAMES:
            raise UserError(f"{clip.name}: must have {MIN_FRAMES} frames, has {len(clip.frames)}; remove it")
        return save_clip(folder, clip.name, clip_tensors(clip, self._vae, self._audio_encoder, self._mask))


@torch.inference_mode()
def clip_tensors(clip: Clip, vae: Autoencoder, encoder: AudioEncoder, mask: Tensor) -> dict[str, Tensor]:
    """Computes what a prepared clip holds (`data.clips.save_clip`).

    Args:
        clip: Frames of any size.
        vae: From `load_autoencoder`.
        encoder: Gives the audio features.
        mask: (H, W) of the frames to prepare, 1 = kept.

    Raises:
        UserError: Something comes out that is not finite.
    """
    resized = np.stack([resize_frame(frame, len(mask)) for frame in clip.frames])
    frames = torch.from_numpy(resized).permute(0, 3, 1, 2).contiguous()
    encoded: dict[str, list[Tensor]] = defaultdict(list)
    for batch in torch.split(frames, 16 if vae.device.type == "cuda" else max(1, CPU_BATCH_PIXELS // len(mask) ** 2)):
        pixels = to_pixels(batch)
        # The hole is grey: 0 in [-1, 1] (golden img.masked_pixel_values).
        for key, pictures in {"latents": pixels, "masked_latents": pixels * mask}.items():
            latents, posterior = encode_posterior(vae, pictures.to(vae.device))
            encoded[key].append(latents.cpu())
            if posterior is not None:
                encoded[f"{key}_posterior"].append(posterior.cpu())
    tensors = {
        "frames": frames,
        **{key: torch.cat(batches) for key, batches in encoded.items()},
        "audio_features": encoder(clip.wave),
        "mel": torch.from_numpy(mel_spectrogram(clip.wave)),
        "wave": to_pcm(clip.wave),
    }
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{clip.name}: its {key} are not all finite; convert it again or remove it")
    return tensors
