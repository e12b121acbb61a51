"""Pictures and sound of a clip, and the windows that a training sample takes of them.

Figures are LatentSync's (https://github.com/bytedance/LatentSync, commit a229c39, Apache-2.0); its mel
spectrogram is Wav2Lip's (https://github.com/Rudrabha/Wav2Lip, hparams.py and audio.py).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from latentsync_ray.config.errors import UserError

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

# Picture that a file may lack at its end, against the length it claims, before it counts as truncated.
TRUNCATION_TOLERANCE_SECONDS = 0.2


@dataclass(frozen=True, eq=False)
class Clip:
    """A stretch of one face, aligned, with its sound.

    Attributes:
        name: what it is called in a prepared set, such as "speaker3/00".
        frames: uint8 (F, H, W, 3), RGB, 25 a second.
        wave: float32 (640 * F,) in [-1, 1], mono, 16 kHz, beginning with frame 0.
    """

    name: str
    frames: Bytes
    wave: Floats

    def __post_init__(self) -> None:
        assert self.frames.dtype == np.uint8 and self.frames.ndim == 4 and self.frames.shape[3] == 3
        assert self.wave.dtype == np.float32 and self.wave.shape == (SAMPLES_PER_FRAME * len(self.frames),)


def read_clip(path: Path, resolution: int | None = None) -> Clip:
    """Reads a video with sound, resampled to 25 frames a second and 16 kHz mono.

    What is longer, picture or sound, is cut.

    Args:
        path: a file that FFmpeg can read; its sound is what `read_wave` finds.
        resolution: height and width to resize each frame to as it is decoded; None leaves them as they are.

    Returns:
        The clip, named by the file's stem.

    Raises:
        UserError: if the file cannot be read, lacks picture or sound, or ends before the length it claims.
    """
    wave = read_wave(path)
    frames = [pixels if resolution is None else resize_frame(pixels, resolution) for pixels in read_frames(path)]
    num_frames = min(len(frames), len(wave) // SAMPLES_PER_FRAME)
    if num_frames == 0:
        raise UserError(f"{path}: picture and sound have less than one frame (1/{FPS} s) in common; remove it")
    return Clip(path.stem, np.stack(frames[:num_frames]), wave[: num_frames * SAMPLES_PER_FRAME])


def read_frames(path: Path) -> Iterator[Bytes]:
    """Decodes a video frame by frame, resampled to 25 a second and turned as it is to be shown.

    Args:
        path: a file that FFmpeg can read.

    Yields:
        uint8 (H, W, 3), RGB.

    Raises:
        UserError: if the file cannot be read or lacks a picture; at the end, if that comes before the length that
            the file claims.
    """
    with _reading(path), av.open(str(path)) as container:
        stream = _video_stream(path, container)
        graph = av.filter.Graph()
        source, sink = graph.add_buffer(template=stream), graph.add("buffersink")
        graph.link_nodes(source, graph.add("fps", str(FPS)), sink).configure()

        first_pts = last_pts = None
        quarter_turns = 0
        for frame in chain(container.decode(stream), [None]):
            graph.push(frame)
            if frame is not None and frame.pts is not None:
                first_pts, last_pts = frame.pts if first_pts is None else first_pts, frame.pts
                quarter_turns = round(frame.rotation / 90)  # counterclockwise, as telephones note it
            while True:
                try:
                    pixels = graph.pull().to_ndarray(format="rgb24")
                except (av.BlockingIOError, av.EOFError):
                    break
                yield np.ascontiguousarray(np.rot90(pixels, quarter_turns))

        if first_pts is None:
            raise UserError(f"{path}: has no picture that can be decoded; convert it again or remove it")
        seconds = float((last_pts - first_pts) * stream.time_base) + 1 / FPS
        claimed_seconds = float((stream.duration or 0) * stream.time_base)
        if seconds < claimed_seconds - TRUNCATION_TOLERANCE_SECONDS:
            raise UserError(
                f"{path}: is truncated, {seconds:.2f} s of picture where {claimed_seconds:.2f} s are claimed"
                "; convert it again or remove it"
            )


def read_wave(path: Path) -> Floats:
    """Reads the sound of a video, resampled to 16 kHz mono, from the video's first frame on.

    A .wav of the same stem beside the video, where there is one, gives the sound in place of the video's own, and
    begins with its first frame.

    Returns:
        float32 (N,) in [-1, 1].

    Raises:
        UserError: if the file cannot be read, or lacks picture or sound.
    """
    wav = path.with_suffix(".wav")
    with _reading(path):
        frames_start_seconds = _first_frame_seconds(path)
        if wav != path and wav.is_file():
            return _decode_wave(wav)[0]
        wave, wave_start_seconds = _decode_wave(path)
    shift = round((wave_start_seconds - frames_start_seconds) * SAMPLE_RATE)
    return np.pad(wave, (shift, 0)) if shift > 0 else wave[-shift:]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Says of what FFmpeg cannot read that the file is at fault."""
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        reason = error.strerror or type(error).__name__
        raise UserError(
            f"{path}: cannot be read as video with sound ({reason}); convert it again or remove it"
        ) from error


def _video_stream(path: Path, container: Any) -> Any:
    if not container.streams.video:
        raise UserError(f"{path}: has no video; remove it")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    stream.codec_context.thread_count = torch.get_num_threads()  # Ray gives each task its share
    return stream


def _first_frame_seconds(path: Path) -> float:
    with av.open(str(path)) as container:
        for frame in container.decode(_video_stream(path, container)):
            if frame.pts is not None:
                return float(frame.pts * frame.time_base)
    raise UserError(f"{path}: has no picture that can be decoded; convert it again or remove it")


def _decode_wave(path: Path) -> tuple[Floats, float]:
    """Returns the first audio stream as a mono wave at 16 kHz, and the time of its first sample."""
    pieces: list[Floats] = []
    start_seconds = None
    with av.open(str(path)) as container:
        if not container.streams.audio:
            raise UserError(f"{path}: has no sound; add it, or lay a .wav of the same stem beside it")
        resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
        for frame in container.decode(audio=0):
            start_seconds = frame.time if start_seconds is None else start_seconds
            pieces += [piece.to_ndarray()[0] for piece in resampler.resample(frame)]
        pieces += [piece.to_ndarray()[0] for piece in resampler.resample(None)]
    if not pieces:
        raise UserError(f"{path}: has no sound that can be decoded; convert it again or remove it")
    return np.concatenate(pieces), start_seconds or 0.0


def write_clip(path: Path, clip: Clip) -> None:
    """Writes a clip as mp4: H.264 (CRF 10) and AAC at 16 kHz. Height and width must be even.

    Args:
        path: the file, ending in .mp4.
        clip: what to write.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.mp4")
    with av.open(str(temporary), "w") as container:
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
    temporary.replace(path)


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
        with av.open(str(path)) as container:
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
