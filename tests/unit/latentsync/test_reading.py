"""What is read of small files that are written here: orientation, time stamps, tracks, and whose fault errors are."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from latentsync_ray.config.errors import UserError
from latentsync_ray.latentsync.data.aligned import read_clip
from latentsync_ray.latentsync.data.container import Clock, reading
from latentsync_ray.latentsync.data.media import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, Clip, write_clip
from latentsync_ray.latentsync.data.pictures import read_frames
from latentsync_ray.latentsync.data.sound import _Run, read_sound

QUADRANTS = np.zeros((32, 64, 3), np.uint8)
QUADRANTS[:16, :32] = 255
QUADRANTS[16:, 32:, 0] = 200


def noise(num_samples: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, num_samples).astype(np.float32)


def moving(num_frames: int) -> np.ndarray:
    """Grey that grows by 2 with every frame, so that brightness tells the frame's number."""
    return np.arange(num_frames, dtype=np.uint8)[:, None, None, None] * 2 + np.zeros((32, 64, 3), np.uint8)


def write(
    path: Path,
    frames: np.ndarray,
    channels: Sequence[np.ndarray] = (),
    times: Callable[[int], float] = lambda number: number / FPS,
    aspect: Fraction | None = None,
) -> None:
    """Writes frames at any times, in seconds, and sound of one or two channels, without loss but for the colours."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS, options={"crf": "1", "bf": "0"})
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        if aspect is not None:
            video.codec_context.sample_aspect_ratio = aspect
        if len(channels):
            layout = "mono" if len(channels) == 1 else "stereo"
            sound = container.add_stream("pcm_f32le", rate=SAMPLE_RATE, layout=layout)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(1000 * times(number)), Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if len(channels):
            samples = av.AudioFrame.from_ndarray(
                np.stack(channels, axis=1).reshape(1, -1).astype(np.float32), format="flt", layout=layout
            )
            samples.sample_rate, samples.pts = SAMPLE_RATE, 0
            container.mux(sound.encode(samples))
            container.mux(sound.encode(None))


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((1, 0, 0, 1), QUADRANTS),
        ((-1, 0, 0, 1), QUADRANTS[:, ::-1]),
        ((1, 0, 0, -1), QUADRANTS[::-1]),
        ((-1, 0, 0, -1), QUADRANTS[::-1, ::-1]),
        ((0, 1, -1, 0), np.rot90(QUADRANTS, -1)),
        ((0, -1, 1, 0), np.rot90(QUADRANTS)),
        ((0, 1, 1, 0), QUADRANTS.swapaxes(0, 1)),
        ((0, -1, -1, 0), QUADRANTS.swapaxes(0, 1)[::-1, ::-1]),
    ],
)
def test_all_eight_orientations_are_ffmpegs(matrix: tuple[int, ...], expected: np.ndarray, tmp_path: Path) -> None:
    """The expected pictures were compared with those of ffmpeg 5.1 on the command line: equal to the bit."""
    write_clip(tmp_path / "a.mp4", Clip("a", np.stack([QUADRANTS] * 3), noise(3 * SAMPLES_PER_FRAME)))
    one, end = 0x10000, 0x40000000
    upright = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, end)
    a, b, c, d = (one * part for part in matrix)
    header, track, rest = (tmp_path / "a.mp4").read_bytes().partition(b"tkhd")
    oriented = rest.replace(upright, struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, end), 1)
    (tmp_path / "b.mp4").write_bytes(header + track + oriented)
    _, frame = next(read_frames(tmp_path / "b.mp4"))
    assert frame.shape == expected.shape
    assert np.abs(frame.astype(int) - expected).mean() < 2


@pytest.mark.parametrize(("aspect", "shape"), [((4, 3), (32, 85, 3)), ((1, 2), (64, 64, 3))])
def test_samples_become_square(aspect: tuple[int, int], shape: tuple[int, ...], tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", moving(3), aspect=Fraction(*aspect))
    assert next(read_frames(tmp_path / "a.mp4"))[1].shape == shape


def test_a_clock_that_jumps_splits_pictures_and_sound(tmp_path: Path) -> None:
    write(tmp_path / "a.mkv", moving(60), times=lambda number: number / FPS + 100 * (number >= 40))
    with pytest.raises(UserError, match=r"a\.mkv: the clock of its video jumps by more than 1 s, 1\.56 s after"):
        list(read_frames(tmp_path / "a.mkv"))
    numbers, frames = zip(*read_frames(tmp_path / "a.mkv", may_jump=True), strict=True)
    assert numbers == (*range(40), *range(2540, 2560))
    shown = np.array([frame.mean() / 2 for frame in frames])
    assert np.abs(shown - np.arange(60)).max() < 1
    assert [number for number, _ in read_frames(tmp_path / "a.mkv", 50, may_jump=True)] == list(range(40))


def test_a_clock_that_jumps_back_keeps_before_and_after_apart() -> None:
    clock, other = Clock(), Clock()
    assert [clock(time) for time in (5.0, 5.5, 5.2)] == [5.0, 5.5, 5.2]
    assert clock(1.0) > 1e5
    other(9.0)
    assert other(1.5) - clock(1.2) == pytest.approx(0.3)  # picture and sound stay together


def test_frames_are_shown_while_they_are_on_screen(tmp_path: Path) -> None:
    """Held for up to a second, the last one by its own duration; overlaps are cut."""
    at = [0, 0.04, 0.5, 0.52, 1.25]
    write(tmp_path / "a.mkv", moving(5) * 20, times=lambda number: at[number])
    shown = [round(frame.mean() / 40) for _, frame in read_frames(tmp_path / "a.mkv")]
    expected = [max(n for n, time in enumerate(at) if time <= k / FPS) for k in range(32)]
    assert shown[:32] == expected


def test_sound_that_cancels_and_silence_and_a_still_picture_are_warned_of(tmp_path: Path) -> None:
    wave = noise(30 * SAMPLES_PER_FRAME)
    write(tmp_path / "good.mkv", moving(30), [wave, wave])
    write(tmp_path / "antiphase.mkv", moving(30), [wave, -wave])
    write(tmp_path / "silent.mkv", moving(30), [0 * wave, 0 * wave])
    write(tmp_path / "still.mkv", np.stack([QUADRANTS] * 30), [wave])
    good = read_clip(tmp_path / "good.mkv")
    assert good.warnings == ()
    np.testing.assert_allclose(good.wave, wave[: len(good.wave)], atol=1e-6)  # stereo becomes no louder
    (antiphase,) = read_clip(tmp_path / "antiphase.mkv").warnings
    assert antiphase.startswith("its two channels cancel each other out in mono")
    assert read_clip(tmp_path / "silent.mkv").warnings == ("its sound is silent",)
    assert read_clip(tmp_path / "still.mkv").warnings == ("its picture stands still",)


def test_a_bad_wav_is_blamed_and_not_the_video_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", moving(30))
    (tmp_path / "a.wav").write_text("words")
    with pytest.raises(UserError, match=rf"^{tmp_path}/a\.wav: cannot be read"):
        read_clip(tmp_path / "a.mp4")


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xe9.mkv"))
    write(tmp_path / "a.mkv", moving(10), [noise(10 * SAMPLES_PER_FRAME)])
    (tmp_path / "a.mkv").rename(path)
    clip = read_clip(path)
    assert clip.name == r"\xff\xe9" and len(clip.frames) == 10


def test_less_than_a_frame_of_sound(tmp_path: Path) -> None:
    write(tmp_path / "a.mkv", moving(1), [noise(300)])
    with pytest.raises(UserError, match="have less than one frame"):
        read_clip(tmp_path / "a.mkv")


def test_sound_goes_on_after_a_jump_at_its_own_time(tmp_path: Path) -> None:
    """Two pieces of sound, the second two seconds after the end of the first."""
    wave = noise(SAMPLE_RATE)
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        video = container.add_stream("libx264", rate=FPS)
        video.height, video.width, video.pix_fmt = 32, 64, "yuv420p"
        sound = container.add_stream("pcm_f32le", rate=SAMPLE_RATE, layout="mono")
        for pixels in moving(100):
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode(None))
        for start in (0, 3 * SAMPLE_RATE):
            samples = av.AudioFrame.from_ndarray(wave[None], format="flt", layout="mono")
            samples.sample_rate, samples.pts = SAMPLE_RATE, start
            container.mux(sound.encode(samples))
        container.mux(sound.encode(None))
    first, second = read_sound(tmp_path / "a.mkv").stretches
    assert (first.start, first.stop) == (0, SAMPLE_RATE) and (second.start, second.stop) == (
        3 * SAMPLE_RATE,
        4 * SAMPLE_RATE,
    )
    np.testing.assert_allclose(second.wave, wave, atol=1e-6)
    with pytest.raises(UserError, match=r"a\.mkv: the clock of its sound jumps by more than 1 s, 1\.00 s after"):
        read_clip(tmp_path / "a.mkv")


def test_a_run_of_sound_ends_with_its_format_or_its_time() -> None:
    def frame(layout: str, rate: int) -> av.AudioFrame:
        made = av.AudioFrame(format="fltp", layout=layout, samples=1024)
        made.sample_rate = rate
        return made

    run = _Run(2.0, frame("stereo", 44100), "mono")
    run.add(frame("stereo", 44100))
    assert run.stop == 2.0 + 1024 / 44100
    assert run.goes_on(frame("stereo", 44100), None) and run.goes_on(frame("stereo", 44100), run.stop + 0.009)
    assert not run.goes_on(frame("stereo", 44100), run.stop + 0.011)
    assert not run.goes_on(frame("mono", 44100), run.stop) and not run.goes_on(frame("stereo", 48000), run.stop)


def test_any_exception_names_the_file_and_keeps_its_words() -> None:
    with pytest.raises(UserError, match=r"^a\.mp4: cannot be read .*\(KeyError: 'what\?'\)"), reading(Path("a.mp4")):
        raise KeyError("what?")
