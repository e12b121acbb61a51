"""The drawn clips: exact, reproducible, and with mouths that follow the voice."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentsync_ray.latentsync.data import synthetic
from latentsync_ray.latentsync.data.media import SAMPLE_RATE, SAMPLES_PER_FRAME, Clip, face_mask
from latentsync_ray.latentsync.data.synthetic import synthetic_clips


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return list(synthetic_clips(6, 1, 100, 64, seed=7))


@settings(max_examples=10, deadline=None)
@given(
    num_speakers=st.integers(1, 2),
    clips_per_speaker=st.integers(1, 2),
    num_frames=st.integers(1, 40),
    resolution=st.sampled_from([16, 33, 64]),
    seed=st.integers(0, 2**32),
)
def test_clips_have_the_promised_form(num_speakers, clips_per_speaker, num_frames, resolution, seed):
    drawn = list(synthetic_clips(num_speakers, clips_per_speaker, num_frames, resolution, seed))
    assert [clip.name for clip in drawn] == [
        f"speaker{s}/{c:02d}" for s in range(num_speakers) for c in range(clips_per_speaker)
    ]
    for clip in drawn:
        assert clip.frames.dtype == np.uint8
        assert clip.frames.shape == (num_frames, resolution, resolution, 3)
        assert clip.wave.dtype == np.float32
        assert clip.wave.shape == (640 * num_frames,)
        assert np.abs(clip.wave).max() <= 1


def test_clips_are_a_pure_function_of_the_arguments():
    once = list(synthetic_clips(2, 2, 30, 64, seed=3))
    again = list(synthetic_clips(2, 2, 30, 64, seed=3))
    more_speakers = list(synthetic_clips(3, 2, 30, 64, seed=3))
    for first, second, third in zip(once, again, more_speakers[:4], strict=True):
        assert np.array_equal(first.frames, second.frames)
        assert np.array_equal(first.wave, second.wave)
        assert np.array_equal(first.frames, third.frames)
        assert np.array_equal(first.wave, third.wave)
    other_seed = next(synthetic_clips(1, 1, 30, 64, seed=4))
    assert not np.array_equal(once[0].frames, other_seed.frames)
    assert not np.array_equal(once[0].wave, once[1].wave)  # the same speaker says something else


def test_speakers_differ_more_than_the_clips_of_one():
    drawn = list(synthetic_clips(6, 2, 10, 64, seed=11))
    pictures = np.stack([clip.frames.astype(float).mean(axis=0) for clip in drawn])
    own = [np.abs(pictures[i] - pictures[i + 1]).mean() for i in range(0, 12, 2)]
    other = [np.abs(pictures[i] - pictures[(i + 2) % 12]).mean() for i in range(0, 12, 2)]
    assert min(other) > 2 * max(own)


def test_edges_are_smooth_at_any_resolution():
    coarse, fine = (next(synthetic_clips(1, 1, 5, resolution, seed=5)).frames for resolution in (32, 128))
    averaged = fine.reshape(5, 32, 4, 32, 4, 3).mean(axis=(2, 4))
    assert np.abs(averaged - coarse).mean() < 3


def test_opening_follows_loudness_and_width_the_second_formant(clips):
    """Measured on pixels and samples, frame by frame; sound of another moment does not fit."""
    opening, width, shifted = [], [], []
    for clip in clips:
        area, extent = mouth_area_and_width(clip.frames)
        loudness, brightness = sound_of_frames(clip.wave)
        opening.append(np.corrcoef(area, loudness)[0, 1])
        width.append(np.corrcoef(extent, brightness)[0, 1])
        shifted.append(np.corrcoef(area, np.roll(loudness, 25))[0, 1])
    assert min(opening) > 0.5
    assert min(width) > 0.3
    assert max(np.abs(shifted)) < 0.4


def mouth_area_and_width(frames: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float64], ...]:
    """Number of dark red pixels and of columns with lips in them, of each frame."""
    mouth = frames[:, 40:58, 16:48].astype(float)
    redness = mouth[..., 0] - mouth[..., 1]
    dark = (mouth.max(axis=-1) < 110) & (redness > 20)
    lips = redness - np.median(redness, axis=(1, 2), keepdims=True) > 40
    return dark.sum(axis=(1, 2)).astype(float), lips.any(axis=1).sum(axis=1).astype(float)


def sound_of_frames(wave: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float64], ...]:
    """Log amplitude, and log energy about a high second formant over that about a low one, of each frame."""
    sound = wave.reshape(-1, SAMPLES_PER_FRAME).astype(float)
    power = np.abs(np.fft.rfft(sound * np.hanning(SAMPLES_PER_FRAME), axis=1)) ** 2
    hertz = np.fft.rfftfreq(SAMPLES_PER_FRAME, 1 / SAMPLE_RATE)
    high, low = (power[:, (hertz > a) & (hertz < b)].sum(axis=1) for a, b in ((1700, 3000), (600, 1500)))
    return np.log(np.sqrt((sound**2).mean(axis=1)) + 1e-3), np.log(high + 1e-6) - np.log(low + 1e-6)


def test_the_moving_mouth_stays_inside_the_mask():
    """What is to be generated must be hidden: no speech shows in the pixels that the UNet is given."""
    kept = face_mask(64).numpy() == 1
    for s in range(20):
        speaker = synthetic._Speaker.draw(np.random.default_rng([9, s]))
        head = np.random.default_rng(s).choice([-1, 0, 1], 3) * [0.014, 0.010, 0.05]  # as far as it sways
        shut, wide_open = (0, 0.55 * speaker.mouth_width), (speaker.mouth_height, 1.3 * speaker.mouth_width)
        poses = np.array([[*mouth, *head, 1] for mouth in (shut, wide_open)]).T
        frame_shut, frame_open = synthetic._draw_frames(speaker, poses, 64)
        assert np.array_equal(frame_shut[kept], frame_open[kept])
        assert not np.array_equal(frame_shut, frame_open)
