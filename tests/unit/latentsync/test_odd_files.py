"""Files that are unusual or faulty: what is read of them, number by number, or the reason for leaving them out.

The files lie in ../shared/faults, where reference.mp4 is the clean clip; its README says what is odd in each.
"""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from latentsync_ray.config.errors import UserError
from latentsync_ray.latentsync.data.aligned import read_clip
from latentsync_ray.latentsync.data.container import open_track
from latentsync_ray.latentsync.data.facemesh import check_installed
from latentsync_ray.latentsync.data.faces import MIN_INSIDE, MIN_MASKED_INSIDE
from latentsync_ray.latentsync.data.footage import read_footage
from latentsync_ray.latentsync.data.media import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, Clip, face_mask, write_clip
from latentsync_ray.latentsync.data.pictures import read_frames

STRETCH = round(0.4 * SAMPLE_RATE)
FARTHEST = round(0.1 * SAMPLE_RATE)
NUM_DAMAGED = 60
GENERATED = face_mask(256).numpy() == 0


@pytest.fixture(scope="module")
def faults(shared: Path) -> Path:
    return shared / "faults"


@pytest.fixture(scope="module")
def reference(faults: Path) -> Clip:
    return read_clip(faults / "reference.mp4", 256)


@pytest.fixture(scope="module")
def face_mesh() -> None:
    try:
        check_installed()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def footage_reference(faults: Path, face_mesh: None) -> Clip:
    (clip,) = read_footage(faults / "raw_reference.mp4", 256, GENERATED, None)[1]
    return clip


def rms(frames: np.ndarray, others: np.ndarray) -> float:
    """The greatest root mean square error of a frame, of 255."""
    return float(np.sqrt(((frames.astype(float) - others) ** 2).mean(axis=(1, 2, 3))).max())


def displacement(wave: np.ndarray, reference: np.ndarray, seconds: float) -> float:
    """Milliseconds by which 0.4 s of a wave, from `seconds` on, come later than in the reference."""
    start = round(seconds * SAMPLE_RATE)
    piece = wave[start : start + STRETCH]
    first = max(0, start - FARTHEST)
    around = reference[first : start + STRETCH + FARTHEST]
    loudness = np.sqrt(np.convolve(around.astype(float) ** 2, np.ones(STRETCH), "valid"))
    likeness = np.correlate(around, piece, "valid") / (loudness * np.linalg.norm(piece))
    assert likeness.max() > 0.9, f"another sound at {seconds} s"
    return 1000 * (start - first - int(likeness.argmax())) / SAMPLE_RATE


def displacements(wave: np.ndarray, reference: np.ndarray, *starts: float) -> np.ndarray:
    return np.array([displacement(wave, reference, seconds) for seconds in starts])


def on_screen(path: Path, num_frames: int) -> np.ndarray:
    """What a file shows at each 25th of a second after its first frame."""
    with open_track(path, "video") as (container, stream):
        decoded = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)]
    times = np.array([time for time, _ in decoded]) - decoded[0][0]
    return np.stack([decoded[int((times <= k / FPS + 1e-6).sum()) - 1][1] for k in range(num_frames)])


def test_a_title_that_is_not_utf8(faults: Path, reference: Clip) -> None:
    clip = read_clip(faults / "sjis_title.mp4", 256)
    assert len(clip.frames) == 30
    assert rms(clip.frames, reference.frames[:30]) < 3
    assert np.abs(displacements(clip.wave, reference.wave, 0.2, 0.6)).max() < 1


def test_a_picture_without_a_decoder(faults: Path) -> None:
    with pytest.raises(UserError, match=r"unknown_vcodec\.mp4: there is no decoder for its video"):
        read_clip(faults / "unknown_vcodec.mp4", 256)


def test_sound_whose_rate_and_channels_change(faults: Path, reference: Clip) -> None:
    """The second half of the file is 60 ms early, picture and sound alike, so they must stay together there."""
    clip = read_clip(faults / "rate_change_ts_as.mp4", 256)
    assert len(clip.frames) >= 73
    assert np.abs(displacements(clip.wave, reference.wave, 0.2, 0.6, 1.0)).max() < 2
    assert np.abs(displacements(clip.wave, reference.wave, 1.6, 2.0, 2.4) + 60).max() < 2
    assert rms(clip.frames[:37], reference.frames[:37]) < 3
    # Of the second half, a frame is 20 ms on screen at each 25th: 40 ms early in the reference's numbers.
    assert rms(clip.frames[44:73], reference.frames[45:74]) < 3


def test_sound_packets_that_are_missing(faults: Path, reference: Clip) -> None:
    clip = read_clip(faults / "gap.mp4", 256)
    assert len(clip.frames) in (74, 75)
    assert rms(clip.frames, reference.frames[: len(clip.frames)]) < 3
    assert np.abs(displacements(clip.wave, reference.wave, 0.1, 0.5, 1.6, 2.0, 2.4)).max() < 1
    silent = clip.wave[round(1.09 * SAMPLE_RATE) : round(1.5 * SAMPLE_RATE)]
    assert np.abs(silent).max() == 0


def test_a_last_frame_far_away(faults: Path) -> None:
    """Named, and in little memory: that of a process that reads it, with all libraries."""
    program = (
        "import sys; from pathlib import Path\n"
        "from latentsync_ray.config.errors import UserError\n"
        "from latentsync_ray.latentsync.data.aligned import read_clip\n"
        "try: read_clip(Path(sys.argv[1]), 256)\n"
        "except UserError as error: print(error)\n"
        # Not getrusage: that counts the parent's memory too.
        "print(next(l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')))"
    )
    command = [sys.executable, "-c", program, str(faults / "far_last_frame.mp4")]
    said, kibibytes = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "far_last_frame.mp4: the clock of its video jumps by more than 1 s, 2.76 s after its first frame" in said
    assert int(kibibytes) * 1024 < 0.7e9


def test_a_display_matrix_that_mirrors(faults: Path, reference: Clip) -> None:
    clip = read_clip(faults / "hflip.mp4", 256)
    assert len(clip.frames) == 75
    assert rms(clip.frames, reference.frames[:, :, ::-1]) < 3


@pytest.mark.parametrize("name", ["fps4.mp4", "vfr_hold300ms.mp4"])
def test_frames_that_are_held(name: str, faults: Path, reference: Clip) -> None:
    clip = read_clip(faults / name, 256)
    assert len(clip.frames) == 75
    assert rms(clip.frames, on_screen(faults / name, 75)) < 3
    assert np.abs(displacements(clip.wave, reference.wave, 0.2, 1.0, 2.0)).max() < 1


def test_the_default_of_two_sound_tracks(faults: Path, reference: Clip) -> None:
    clip = read_clip(faults / "two_audio_default2.mp4", 256)
    assert len(clip.frames) == 75 and not clip.warnings
    assert np.abs(displacements(clip.wave, reference.wave, 0.2, 0.6, 1.0, 1.4, 1.8, 2.2)).max() < 1


def test_hdr(faults: Path) -> None:
    with pytest.raises(
        UserError, match=r"hlg\.mp4: is HDR \(HLG\), .*convert it by ffmpeg -i .*hlg\.mp4 -vf zscale="
    ):
        read_clip(faults / "hlg.mp4", 256)


def test_footage_with_samples_that_are_not_square(faults: Path, footage_reference: Clip) -> None:
    (clip,) = read_footage(faults / "raw_sar43.mp4", 256, GENERATED, None)[1]
    assert clip.frames.shape == footage_reference.frames.shape == (75, 256, 256, 3)
    assert rms(clip.frames, footage_reference.frames) < 6


def test_footage_whose_edge_cuts_the_chin(faults: Path, face_mesh: None) -> None:
    limits = f"{MIN_MASKED_INSIDE:.0%} of what is to be generated and {MIN_INSIDE:.0%} of the cut-out"
    with pytest.raises(
        UserError, match=rf"raw_edge396\.mp4: .*in 75 of them cut off by the picture's edge \({limits}"
    ):
        read_footage(faults / "raw_edge396.mp4", 256, GENERATED, None)


def test_footage_whose_clock_jumps(faults: Path, footage_reference: Clip, tmp_path: Path) -> None:
    """By 100 s after 40 frames, picture and sound alike: two clips, each with its own sound."""
    sound = read_clip(faults / "raw_reference.mp4").wave
    path = tmp_path / "jump.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS, options={"crf": "10", "bf": "0"})
        video.width, video.height, video.pix_fmt = 540, 960, "yuv420p"
        audio = container.add_stream("pcm_f32le", rate=SAMPLE_RATE, layout="mono")
        for number, pixels in read_frames(faults / "raw_reference.mp4", 75):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number + 2500 * (number >= 40), Fraction(1, FPS)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for first, last, start in ((0, 40, 0), (40, 75, 2540)):
            piece = sound[first * SAMPLES_PER_FRAME : last * SAMPLES_PER_FRAME]
            samples = av.AudioFrame.from_ndarray(piece[None], format="flt", layout="mono")
            samples.sample_rate, samples.pts = SAMPLE_RATE, start * SAMPLES_PER_FRAME
            container.mux(audio.encode(samples))
        container.mux(audio.encode(None))
    num_clips, clips = read_footage(path, 256, GENERATED, None)
    before, after = clips
    assert num_clips == 2 and (len(before.frames), len(after.frames)) == (40, 35)
    np.testing.assert_allclose(before.wave, sound[: 40 * SAMPLES_PER_FRAME], atol=1e-6)
    np.testing.assert_allclose(after.wave, sound[40 * SAMPLES_PER_FRAME :], atol=1e-6)
    assert rms(after.frames[4:], footage_reference.frames[44:]) < 4  # where both are smoothed alike


def test_footage_whose_face_is_too_small(faults: Path, tmp_path: Path, face_mesh: None) -> None:
    """A face of 97 pixels in a picture of 1920, where MediaPipe finds none."""
    frames = np.full((25, 1080, 1920, 3), 60, np.uint8)
    for (_, frame), canvas in zip(read_frames(faults / "raw_reference.mp4", 25), frames, strict=True):
        canvas[60:1020, 700:1240] = frame
    write_clip(tmp_path / "small.mp4", Clip("small", frames, np.zeros(25 * SAMPLES_PER_FRAME, np.float32)))
    with pytest.raises(UserError) as refused:
        read_footage(tmp_path / "small.mp4", 256, GENERATED, None)
    assert str(refused.value) == (
        f"{tmp_path}/small.mp4: must show one face for 1 s on end, shows one in 0 of 25 frames with sound; faces were"
        " found that are too small (10 % of the picture's width is the limit); remove it"
    )


@pytest.mark.slow
@pytest.mark.soak
def test_footage_that_is_whole_loses_nothing(shared: Path, face_mesh: None) -> None:
    """As many clips as without the limits, and in none of them grey that is not the picture's own."""
    num_clips = {}
    for path in sorted((shared / "real" / "raw").glob("*.mp4")):
        num_clips[path.stem], clips = read_footage(path, 256, GENERATED, None)
        for clip in clips:
            grey = (clip.frames == 127).all(axis=3)
            assert grey[:, GENERATED].mean(axis=1).max() <= 1 - MIN_MASKED_INSIDE
            assert grey.mean(axis=(1, 2)).max() <= 1 - MIN_INSIDE
    assert num_clips == {"demo1_video": 1, "demo2_video": 2}


@pytest.mark.slow
def test_damaged_files_are_left_out_or_read(faults: Path, tmp_path: Path) -> None:
    """Bytes changed at random, in the header as often as elsewhere."""
    rng = np.random.default_rng(0)
    originals = [faults / name for name in ("reference.mp4", "gap.mp4", "rate_change_ts_as.mp4", "sjis_title.mp4")]
    outcomes = []
    for number in range(NUM_DAMAGED):
        data = bytearray(originals[number % len(originals)].read_bytes())
        bounds = (0, len(data)) if number % 2 else (len(data) - 4000, len(data))
        for place in rng.integers(*bounds, 2 ** rng.integers(0, 8)):
            data[place] = rng.integers(256)
        path = tmp_path / "damaged.mp4"
        path.write_bytes(data)
        try:
            read_clip(path, 256)
            outcomes.append("read")
        except UserError as error:
            assert str(error).startswith(f"{path}: ")
            outcomes.append("left out")
    assert set(outcomes) == {"read", "left out"}
