"""Frames, masks, mel spectrograms and windows against the reference's numbers; files against what was written."""

import json
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn import functional

from latentsync_ray.config.errors import UserError
from latentsync_ray.latentsync.data.aligned import read_clip
from latentsync_ray.latentsync.data.media import (
    FPS,
    MEL_COLUMNS_PER_SECOND,
    SAMPLE_RATE,
    SAMPLES_PER_FRAME,
    Clip,
    audio_windows,
    face_mask,
    first_mel_column,
    mel_spectrogram,
    num_mel_columns,
    read_mask,
    resize_frame,
    resize_mask,
    to_pixels,
    write_clip,
)


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, torch.Tensor]:
    return load_file(shared / "golden" / "functional.safetensors")


@pytest.fixture(scope="module")
def facts(shared: Path) -> dict:
    return json.loads((shared / "golden" / "functional.json").read_text())


def make_clip(num_frames: int = 30, size: int = 64) -> Clip:
    """A square that moves and brightens, and a click in the middle of each tenth frame."""
    frames = np.full((num_frames, size, size, 3), 40, np.uint8)
    for i, frame in enumerate(frames):
        frame[8:40, i : i + 24] = (200, 2 * i + 50, 90)
    wave = np.zeros(num_frames * SAMPLES_PER_FRAME, np.float32)
    wave[SAMPLES_PER_FRAME // 2 :: 10 * SAMPLES_PER_FRAME] = 0.9
    # AAC needs something with a spectrum rather than single samples.
    burst = np.hanning(160) * np.sin(np.arange(160) * 0.7)
    return Clip("square", frames, np.convolve(wave, burst, "same").astype(np.float32))


def delay(wave: np.ndarray, reference: np.ndarray) -> int:
    """Samples by which a wave lags behind another, from their correlation."""
    return int(np.correlate(wave, reference, "full").argmax()) - (len(reference) - 1)


def test_mel_spectrogram_is_the_reference_s(golden: dict[str, torch.Tensor]) -> None:
    mel = mel_spectrogram(golden["mel.wav"].numpy())
    assert mel.dtype == np.float32
    np.testing.assert_allclose(mel, golden["mel.out"].numpy(), atol=1e-5)


def test_mel_windows_begin_and_end_where_the_reference_s_do(facts: dict) -> None:
    crop = facts["crop_audio_window"]
    assert num_mel_columns(crop["num_frames"]) == crop["mel_window_length"]
    whole = [row for row in crop["values"] if row[3] == crop["mel_window_length"]]
    assert len(whole) == 22
    for start_frame, first, past_last, width in whole:
        assert (first_mel_column(start_frame), first_mel_column(start_frame) + width) == (first, past_last)


@settings(deadline=None)
@given(st.integers(1, 400), st.data())
def test_a_mel_window_never_reaches_past_the_end_of_a_clip(num_frames: int, data: st.DataObject) -> None:
    clip_frames = data.draw(st.integers(num_frames, 1000))
    start_frame = data.draw(st.integers(0, clip_frames - num_frames))
    columns = clip_frames * SAMPLES_PER_FRAME // (SAMPLE_RATE // MEL_COLUMNS_PER_SECOND) + 1
    assert first_mel_column(start_frame) + num_mel_columns(num_frames) <= columns


def test_audio_windows_hold_the_reference_s_states(facts: dict) -> None:
    num_states, num_layers, width = facts["get_sliced_feature"]["feature_array_shape"]
    times = torch.arange(num_states).float()[:, None, None].expand(num_states, num_layers, width)
    single = [(frame, chosen) for frame, fps, chosen in facts["get_sliced_feature"]["values"] if fps == FPS]
    assert len(single) == 8
    for frame, chosen in single:
        window = audio_windows(times, frame, 1)
        assert window.shape == (1, 50, width)
        assert window[0, ::num_layers, 0].tolist() == chosen
    overlap = facts["crop_overlap_audio_window"]
    for start, chosen in overlap["selected_idx_by_start"].items():
        windows = audio_windows(times, int(start), overlap["num_frames"])
        assert windows.shape == tuple(overlap["output_shape"])
        assert windows[:, ::num_layers, 0].tolist() == chosen


def test_audio_windows_are_ordered_by_time_then_layer() -> None:
    features = torch.arange(20 * 3).reshape(20, 3, 1)
    assert audio_windows(features, 3, 1).flatten().tolist() == features[2:12].flatten().tolist()


@pytest.mark.parametrize("case", ["resized", "native"])
def test_frames_and_masked_frames_are_the_reference_s(golden: dict[str, torch.Tensor], case: str) -> None:
    frames = golden[f"img.{case}.frames"].to(torch.uint8).numpy()
    resized = np.stack([resize_frame(frame, 48) for frame in frames])
    pixels = to_pixels(torch.from_numpy(resized).permute(0, 3, 1, 2))
    torch.testing.assert_close(pixels, golden[f"img.{case}.pixel_values"], rtol=0, atol=1e-6)
    masked = pixels * golden["img.mask_image"][0]
    torch.testing.assert_close(masked, golden[f"img.{case}.masked_pixel_values"], rtol=0, atol=1e-6)


def test_face_mask_fills_the_reference_s_box(facts: dict) -> None:
    rows, columns = (face_mask(256) == 0).nonzero(as_tuple=True)
    box = [rows.min(), rows.max(), columns.min(), columns.max()]
    assert [int(edge) for edge in box] == facts["mask_256"]["zero_bbox_rows_cols"]


@pytest.mark.parametrize("resolution", [64, 96, 512])
def test_face_mask_is_the_same_picture_at_any_resolution(resolution: int) -> None:
    large = functional.adaptive_avg_pool2d(face_mask(1536)[None], resolution)[0]
    assert set(face_mask(resolution).unique().tolist()) == {0.0, 1.0}
    assert (face_mask(resolution) - large).abs().max() < 0.6


def test_latent_mask_is_resized_as_the_reference_s(golden: dict[str, torch.Tensor]) -> None:
    latent_mask = resize_mask(face_mask(256), (32, 32))
    # Two shapes in one box: theirs leaves out the nose, ours rounds the corners more.
    assert (latent_mask != golden["img.mask_latent_32"]).float().mean() < 0.15
    assert latent_mask.equal(face_mask(256)[::8, ::8])


def test_a_mask_can_be_a_picture(tmp_path: Path) -> None:
    picture = np.full((40, 40, 3), 255, np.uint8)
    picture[20:, :10] = 0
    save_png(tmp_path / "mask.png", picture)
    mask = read_mask(tmp_path / "mask.png", 8)
    assert mask.shape == (8, 8) and (mask == 0).nonzero().tolist() == [[r, c] for r in range(4, 8) for c in range(2)]
    save_png(tmp_path / "white.png", np.full((40, 40, 3), 255, np.uint8))
    with pytest.raises(UserError, match=r"white\.png.*one colour"):
        read_mask(tmp_path / "white.png", 8)
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(UserError, match=r"text\.png"):
        read_mask(tmp_path / "text.png", 8)


def save_png(path: Path, picture: np.ndarray) -> None:
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt = "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def test_a_clip_survives_being_written(tmp_path: Path) -> None:
    clip = make_clip()
    write_clip(tmp_path / "square.mp4", clip)
    assert [path.name for path in tmp_path.iterdir()] == ["square.mp4"]
    read = read_clip(tmp_path / "square.mp4")
    assert read.name == "square" and read.frames.shape == clip.frames.shape and read.wave.shape == clip.wave.shape
    error = (read.frames.astype(float) - clip.frames) ** 2
    assert 10 * np.log10(255**2 / error.mean()) > 30
    assert delay(read.wave, clip.wave) == 0


def test_reading_resizes_as_resize_frame_does(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", make_clip())
    native, resized = read_clip(tmp_path / "a.mp4"), read_clip(tmp_path / "a.mp4", resolution=48)
    np.testing.assert_array_equal(resized.frames, np.stack([resize_frame(frame, 48) for frame in native.frames]))


def test_a_wav_beside_the_video_gives_the_sound(tmp_path: Path) -> None:
    clip = make_clip()
    write_clip(tmp_path / "a.mp4", clip)
    loud = (np.roll(clip.wave, 100) * 32767).astype(np.int16)
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=SAMPLE_RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(loud[None, : 20 * SAMPLES_PER_FRAME], format="s16", layout="mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    read = read_clip(tmp_path / "a.mp4")
    assert len(read.frames) == 20  # what is longer, here the picture, is cut
    np.testing.assert_allclose(read.wave, loud[: len(read.wave)] / 32768, atol=1e-6)


def test_other_rates_and_a_late_sound_are_brought_to_ours(tmp_path: Path) -> None:
    """30 frames a second, 44.1 kHz stereo, the sound 0.2 s after the picture."""
    path = tmp_path / "b.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=30, options={"crf": "1"})
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        audio = container.add_stream("aac", rate=44100, layout="stereo")
        for i in range(60):  # grey that grows by 4 a frame, so that brightness tells the time
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 4 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 30)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        tone = np.zeros((2, 79380), np.float32)
        tone[:, 44100:48510] = 0.5 * np.sin(np.arange(4410) * 0.2)  # from 1 s of its own, 1.2 s of the picture's
        sound = av.AudioFrame.from_ndarray(tone, format="fltp", layout="stereo")
        sound.sample_rate, sound.time_base, sound.pts = 44100, Fraction(1, 44100), 8820
        container.mux(audio.encode(sound))
        container.mux(audio.encode(None))
    clip = read_clip(path)
    assert len(clip.frames) == pytest.approx(50, abs=1)
    seen_at = clip.frames.mean(axis=(1, 2, 3)) / 4 / 30
    assert np.abs(seen_at - np.arange(len(clip.frames)) / 25).max() < 0.04
    heard = np.nonzero(np.abs(clip.wave) > 0.05)[0] / SAMPLE_RATE
    assert heard[0] == pytest.approx(1.2, abs=0.01) and heard[-1] == pytest.approx(1.3, abs=0.01)


def test_a_video_is_turned_as_it_is_to_be_shown(tmp_path: Path) -> None:
    """Telephones film upright what lies on its side in the file, and note a quarter turn clockwise."""
    frames = np.zeros((10, 32, 64, 3), np.uint8)
    frames[:, :16, :32] = 255  # above on the left
    write_clip(tmp_path / "a.mp4", Clip("a", frames, make_clip(10).wave))
    data = (tmp_path / "a.mp4").read_bytes()
    one, minus_one, end = 0x10000, 0xFFFF0000, 0x40000000
    upright = struct.pack(">9I", one, 0, 0, 0, one, 0, 0, 0, end)
    turned = struct.pack(">9I", 0, one, 0, minus_one, 0, 0, 0, 0, end)
    header, track, rest = data.partition(b"tkhd")
    (tmp_path / "b.mp4").write_bytes(header + track + rest.replace(upright, turned, 1))
    clip = read_clip(tmp_path / "b.mp4")
    assert clip.frames.shape == (10, 64, 32, 3)
    bright = clip.frames[5, ..., 0] > 128
    assert bright[:32, 16:].all() and bright.sum() == 32 * 16  # above on the right


def test_bad_files_are_told_apart(tmp_path: Path) -> None:
    clip = make_clip(100)
    write_clip(tmp_path / "whole.mp4", clip)
    data = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.mp4").write_text("these are words\n" * 100)
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name in ("cut", "text", "empty", "absent"):
        with pytest.raises(UserError, match=f"^{tmp_path / name}.mp4: cannot be read"):
            read_clip(tmp_path / f"{name}.mp4")

    write_streams(tmp_path / "silent.mp4", clip, sound=False)
    with pytest.raises(UserError, match=r"silent\.mp4: has no sound"):
        read_clip(tmp_path / "silent.mp4")
    write_streams(tmp_path / "dark.mp4", clip, picture=False)
    with pytest.raises(UserError, match=r"dark\.mp4: has no video"):
        read_clip(tmp_path / "dark.mp4")
    write_streams(tmp_path / "front.mp4", clip, options={"movflags": "faststart"})
    data = (tmp_path / "front.mp4").read_bytes()
    (tmp_path / "front_cut.mp4").write_bytes(data[: len(data) * 6 // 10])
    with pytest.raises(UserError, match=r"front_cut\.mp4: (is truncated|cannot be read)"):
        read_clip(tmp_path / "front_cut.mp4")


def write_streams(
    path: Path, clip: Clip, *, picture: bool = True, sound: bool = True, options: dict | None = None
) -> None:
    """As `write_clip`, but without picture or sound, or with other options of the container."""
    with av.open(str(path), "w", options=options or {}) as container:
        if picture:
            video = container.add_stream("libx264", rate=FPS)
            video.height, video.width = clip.frames.shape[1:3]
            video.pix_fmt = "yuv420p"
        if sound:
            audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
            wave = av.AudioFrame.from_ndarray(clip.wave[None], format="fltp", layout="mono")
            wave.sample_rate, wave.pts = SAMPLE_RATE, 0
            container.mux(audio.encode(wave))
            container.mux(audio.encode(None))
        if picture:
            for pixels in clip.frames:
                container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(video.encode(None))


def test_real_clips_are_read_frame_for_frame(shared: Path) -> None:
    path = shared / "real" / "clips" / "demo2_00.mp4"
    clip = read_clip(path)
    with av.open(str(path)) as container:
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    np.testing.assert_array_equal(clip.frames, decoded)
    with av.open(str(path)) as container:
        own = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    assert np.corrcoef(clip.wave, own[: len(clip.wave)])[0, 1] > 0.95  # the wav beside it, in step with the AAC track
