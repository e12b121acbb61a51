"""Pictures and sound of a clip, and the windows that a training sample takes of them.

Figures are LatentSync's (https://github.com/bytedance/LatentSync, commit a229c39, Apache-2.0); its mel
spectrogram is Wav2Lip's (https://github.com/Rudrabha/Wav2Lip, hparams.py and audio.py).
"""

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from latentsync_ray.config.errors import UserError
from latentsync_ray.core.atomic import new_file

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

FPS = 25
SAMPLE_RATE = 16000
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
PCM_PEAK = 32767
MEL_COLUMNS_PER_SECOND = 80
AUDIO_STATES_PER_SECOND = 50
AUDIO_STATES_PER_FRAME = AUDIO_STATES_PER_SECOND // FPS

NUM_MELS = 80
MEL_FFT_SAMPLES = 800
MEL_HOP_SAMPLES = SAMPLE_RATE // MEL_COLUMNS_PER_SECOND
MEL_LOWEST_HZ, MEL_HIGHEST_HZ = 55.0, 7600.0
PREEMPHASIS = 0.97
MEL_REFERENCE_DB, MEL_FLOOR_DB, MEL_RANGE = 20.0, -100.0, 4.0

# Encoder states that a frame sees before and after its own two.
AUDIO_STATES_BEFORE, AUDIO_STATES_AFTER = 4, 4

# The box around the part of a face that is to be generated, in pixels of a 256x256 picture, ends excluded.
MASK_ROWS, MASK_COLUMNS, MASK_RESOLUTION = (95, 243), (9, 248), 256


@dataclass(frozen=True, eq=False)
class Clip:
    """A stretch of one face, aligned, with its sound.

    Attributes:
        name: what it is called in a prepared set, such as "speaker3/00".
        frames: uint8 (F, H, W, 3), RGB, 25 a second.
        wave: float32 (640 * F,) in [-1, 1], mono, 16 kHz, beginning with frame 0.
        warnings: what may be wrong with it, for its owner (`data.quality`).
    """

    name: str
    frames: Bytes
    wave: Floats
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert self.frames.dtype == np.uint8 and self.frames.ndim == 4 and self.frames.shape[3] == 3
        assert self.wave.dtype == np.float32 and self.wave.shape == (SAMPLES_PER_FRAME * len(self.frames),)


def write_clip(path: Path, clip: Clip) -> None:
    """Writes a clip as mp4: H.264 (CRF 10) and AAC at 16 kHz. Height and width must be even.

    Args:
        path: the file, ending in .mp4.
        clip: what to write.
    """
    with new_file(path) as made, av.open(str(made), "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=FPS, options={"crf": "10"})
        video.height, video.width = clip.frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        for pixels in clip.frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode(None))
        samples = av.AudioFrame.from_ndarray(clip.wave[None], format="fltp", layout="mono")
        samples.sample_rate, samples.pts = SAMPLE_RATE, 0  # without a time, AAC's delay would not be undone
        container.mux(audio.encode(samples))
        container.mux(audio.encode(None))


def resize_frame(frame: Bytes, resolution: int) -> Bytes:
    """Resizes a frame uint8 (H, W, 3) to a square: bicubic, antialiased, in float, rounded."""
    if frame.shape[:2] == (resolution, resolution):
        return frame
    pixels = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    pixels = functional.interpolate(pixels, size=(resolution, resolution), mode="bicubic", antialias=True)
    return pixels[0].clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def to_pcm(wave: Floats) -> Tensor:
    """Rounds a wave (N,) in [-1, 1] to int16, 1 being 32767: half the size, its noise 98 dB below a full sine."""
    return torch.tensor(wave).mul_(PCM_PEAK).round_().clamp_(-PCM_PEAK, PCM_PEAK).to(torch.int16)


def from_pcm(samples: Tensor) -> Floats:
    """Gives back what `to_pcm` was given, float32 (N,) in [-1, 1], to within half a step of 1 / 32767."""
    wave: Floats = samples.float().div_(PCM_PEAK).numpy()
    return wave


def to_pixels(frames: Tensor) -> Tensor:
    """Maps uint8 values to float32 in [-1, 1], contiguous; any shape."""
    # In place: new memory for each step would cost several times the arithmetic.
    return frames.to(torch.float32, copy=True, memory_format=torch.contiguous_format).div_(127.5).sub_(1)


def face_mask(resolution: int) -> Tensor:
    """Draws the part of an aligned face that is to be generated: an ellipse over the lower face.

    It fills the box that LatentSync's mask (latentsync/utils/mask.png) fills, rows 95 to 242 and columns 9 to
    247 of 256, with a shape of our own.

    Returns:
        float32 (resolution, resolution); 1 = kept, 0 = to be generated.
    """
    centres = (torch.arange(resolution, dtype=torch.float64) + 0.5) * MASK_RESOLUTION / resolution
    down, across = (
        (2 * centres - (first + past_last)) / (past_last - first) for first, past_last in (MASK_ROWS, MASK_COLUMNS)
    )
    return (down[:, None] ** 2 + across[None, :] ** 2 > 1).float()


def read_mask(path: Path, resolution: int) -> Tensor:
    """Reads a mask from a picture: white is kept, black is to be generated.

    Returns:
        float32 (resolution, resolution) of 0 and 1, nearest-resized.

    Raises:
        UserError: if the file is no picture, or all of it is white or black.
    """
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    except (av.FFmpegError, OSError, StopIteration, IndexError) as error:
        raise UserError(f"{path}: cannot be read as a picture of a mask; give a PNG in black and white") from error
    mask = resize_mask(torch.from_numpy(picture.mean(axis=2) >= 127.5).float(), (resolution, resolution))
    if not 0 < mask.mean() < 1:
        raise UserError(f"{path}: a mask needs white (kept) and black (to be generated), this is all of one colour")
    return mask


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes a mask (H, W) to `size`, nearest neighbour, as the masks that the UNet sees are."""
    return functional.interpolate(mask[None, None], size=size, mode="nearest")[0, 0]


def mel_spectrogram(wave: Floats) -> Floats:
    """Computes the mel spectrogram that SyncNet listens to (Wav2Lip, audio.py `melspectrogram`).

    Pre-emphasis, magnitudes of a centred short-time Fourier transform, 80 Slaney mels between 55 and 7600 Hz,
    decibels mapped from [-100, 0] to [-4, 4].

    Args:
        wave: float32 (N,) in [-1, 1] at 16 kHz, at least one sample.

    Returns:
        float32 (80, N // 200 + 1) in [-4, 4]: 80 columns a second, column 0 centred on the first sample.
    """
    samples = wave.astype(np.float64)
    samples[1:] -= PREEMPHASIS * samples[:-1]
    filters = mel_filter_bank(
        num_frequency_bins=MEL_FFT_SAMPLES // 2 + 1,
        num_mel_filters=NUM_MELS,
        min_frequency=MEL_LOWEST_HZ,
        max_frequency=MEL_HIGHEST_HZ,
        sampling_rate=SAMPLE_RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    logarithms = spectrogram(
        samples,
        window_function(MEL_FFT_SAMPLES, "hann"),
        frame_length=MEL_FFT_SAMPLES,
        hop_length=MEL_HOP_SAMPLES,
        power=1.0,
        pad_mode="constant",
        mel_filters=filters,
        mel_floor=10 ** (MEL_FLOOR_DB / 20),
        log_mel="log10",
        dtype=np.float64,
    )
    decibels: npt.NDArray[np.float64] = 20 * logarithms - MEL_REFERENCE_DB
    scaled = 2 * MEL_RANGE * (decibels - MEL_FLOOR_DB) / -MEL_FLOOR_DB - MEL_RANGE
    return np.clip(scaled, -MEL_RANGE, MEL_RANGE).astype(np.float32)


def num_mel_columns(num_frames: int) -> int:
    """Returns the width of the mel window that goes with a window of frames: ceil(num_frames / 25 * 80)."""
    return -(-num_frames * MEL_COLUMNS_PER_SECOND // FPS)


def first_mel_column(start_frame: int) -> int:
    """Returns the column with which the mel window of frames from `start_frame` on begins."""
    return start_frame * MEL_COLUMNS_PER_SECOND // FPS


def audio_windows(audio_features: Tensor, start_frame: int, num_frames: int) -> Tensor:
    """Gathers what each frame's cross-attention sees of the audio encoder's states.

    A frame sees its own two states, four before and four after, those beyond either end replaced by the
    outermost (LatentSync, latentsync/whisper/audio2feature.py `get_sliced_feature`).

    Args:
        audio_features: (T, L, D), T states a clip at 50 a second, of L layers each.
        start_frame: the first frame.
        num_frames: F.

    Returns:
        (F, 10 * L, D), ordered by time, then by layer.
    """
    first_states = AUDIO_STATES_PER_FRAME * torch.arange(start_frame, start_frame + num_frames)
    offsets = torch.arange(-AUDIO_STATES_BEFORE, AUDIO_STATES_PER_FRAME + AUDIO_STATES_AFTER)
    states = (first_states[:, None] + offsets).clamp(0, len(audio_features) - 1)
    return audio_features[states].flatten(1, 2)
