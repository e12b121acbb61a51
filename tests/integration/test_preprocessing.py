"""The command on a Ray cluster of its own: what it leaves out, what it does after a stop, and after a kill."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from latentsync_ray.config.errors import UserError
from latentsync_ray.latentsync.data.aligned import read_clip
from latentsync_ray.latentsync.data.clips import PreparedClips
from latentsync_ray.latentsync.data.facemesh import FaceMesh, check_installed
from latentsync_ray.latentsync.data.faces import anchors
from latentsync_ray.latentsync.data.media import Clip, write_clip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Small random ones, as options."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("networks")
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1), num_decoder_blocks=(1, 1, 1, 1),
    ).save_pretrained(folder / "vae")  # fmt: skip
    config = WhisperConfig(
        d_model=16, encoder_layers=4, encoder_attention_heads=2, encoder_ffn_dim=32, max_source_positions=50
    )
    WhisperEncoder(config).save_pretrained(folder / "whisper")
    WhisperFeatureExtractor(chunk_length=1).save_pretrained(folder / "whisper")
    return ["--vae", str(folder / "vae"), "--audio-encoder", str(folder / "whisper")]


def make_clip(seed: int, num_frames: int) -> Clip:
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (num_frames, 32, 32, 3), dtype=np.uint8)
    return Clip("noise", frames, rng.normal(0, 0.1, 640 * num_frames).astype(np.float32))


def write_silent(path: Path, original: Path) -> None:
    """Copies a video without its sound."""
    with av.open(str(original)) as source, av.open(str(path), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                target.mux(packet)


def start(source: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "latentsync_ray.preprocess", str(source), str(out), *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def run(source: Path, out: Path, *options: str) -> list[str]:
    process = start(source, out, *options)
    said = process.communicate(timeout=900)[1]
    assert process.returncode == 0, said
    return [line for line in said.splitlines() if line.startswith(("left out", "prepared")) or "done before" in line]


def while_running(process: subprocess.Popen[str], act: Callable[[], bool]) -> str:
    """Calls `act` until it says that it has acted, or the process has ended; gives what the process said."""

    def repeat() -> None:
        while process.poll() is None and not act():
            time.sleep(0.02)

    thread = threading.Thread(target=repeat)
    thread.start()
    said = process.communicate(timeout=900)[1]
    thread.join()
    return said


def ray_children(process: subprocess.Popen[str], title: str) -> list[psutil.Process]:
    """The cluster's workers that a command has started, by what they are at."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if any(part.startswith("ray::") and title in part for part in child.cmdline()):
                found.append(child)
        except psutil.Error:  # it has just ended
            continue
    return found


def test_bad_files_are_named_counted_and_left_out(tmp_path: Path, networks: list[str]) -> None:
    folder, out = tmp_path / "clips", tmp_path / "set"
    folder.mkdir()
    for i in range(3):
        write_clip(folder / f"good{i}.mp4", make_clip(i, 20))
    (folder / "[bold]text.mp4").write_text("words")
    (folder / "truncated.mp4").write_bytes((folder / "good0.mp4").read_bytes()[:3000])
    write_clip(folder / "short.mp4", make_clip(5, 5))
    write_silent(folder / "silent.mp4", folder / "good0.mp4")
    options = [*networks, "--resolution", "32", "--validation", "good1"]
    assert sorted(run(folder, out, *options)) == [
        f"left out {folder}/[bold]text.mp4: cannot be read as video with sound (Invalid data found when processing"
        " input); convert it again or remove it",
        f"left out {folder}/silent.mp4: has no sound; add it, or lay a .wav of the same stem beside it",
        f"left out {folder}/truncated.mp4: cannot be read as video with sound (Invalid data found when processing"
        " input); convert it again or remove it",
        "left out short: must have 8 frames, has 5; remove it",
        f"prepared 3 clips, left out 4: {out}",
    ]
    prepared = PreparedClips.open(out)
    assert [clip.name for clip in prepared.index.clips] == ["good0", "good1", "good2"]
    assert [clip.name for clip in prepared.validation] == ["good1"]
    process = start(folder, out, *options)
    assert "nothing to do" in process.communicate(timeout=300)[1] and process.returncode == 0

    for path in folder.glob("good*"):
        path.unlink()
    process = start(folder, tmp_path / "nothing", *networks, "--resolution", "32")
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 2 and "one to validate on are needed, 0 can be used" in said.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips", "set"]


@pytest.mark.soak
def test_what_is_said_of_odd_files_beside_good_ones(shared: Path, tmp_path: Path, networks: list[str]) -> None:
    """Each file that is left out is named once, each warning told once, progress too, and nothing of others."""
    folder, out = tmp_path / "clips", tmp_path / "set"
    folder.mkdir()
    for path in (shared / "faults").glob("*.mp4"):
        if not path.name.startswith("raw_"):
            (folder / path.name).symlink_to(path)
    for i in range(3):
        write_clip(folder / f"good{i}.mp4", make_clip(i, 20))
    silent = make_clip(3, 20)
    write_clip(folder / "silent.mp4", Clip("silent", silent.frames, 0 * silent.wave))
    shutil.copy(folder / "good0.mp4", os.fsencode(folder) + b"/\xff\xe9.mp4")
    process = start(folder, out, *networks, "--resolution", "32")
    said = process.communicate(timeout=900)[1].splitlines()
    assert process.returncode == 0, said
    is_progress = [bool(re.fullmatch(r"preparing: \d+ of 16 files, \d+ clips", line)) for line in said]
    left_out = [line for line, progress in zip(said, is_progress, strict=True) if not progress]
    assert sorted(line.split(": ")[0] for line in left_out) == [
        *(f"left out {folder}/{name}.mp4" for name in ("far_last_frame", "hlg", "unknown_vcodec")),
        "prepared 13 clips, left out 3",
        "warning",
    ]
    assert "warning: silent: its sound is silent" in left_out
    names = [clip.name for clip in PreparedClips.open(out).index.clips]
    assert names == [
        "\\xff\\xe9", "fps4", "gap", "good0", "good1", "good2", "hflip", "rate_change_ts_as", "reference",
        "silent", "sjis_title", "two_audio_default2", "vfr_hold300ms",
    ]  # fmt: skip


@pytest.mark.soak
def test_stopped_and_killed_it_ends_as_if_nothing_had_been(tmp_path: Path, networks: list[str]) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    for i in range(6):
        write_clip(folder / f"{i}.mp4", make_clip(i, 400))
    options = [*networks, "--resolution", "64"]

    # Ctrl-C as soon as the first file is done; then again, with the first encoder that is seen killed.
    process = start(folder, tmp_path / "set", *options)

    def interrupt() -> bool:
        if not any(tmp_path.glob(".set.partial/*/sources/*.json")):
            return False
        process.send_signal(signal.SIGINT)
        return True

    said = while_running(process, interrupt)
    assert process.returncode == 130, said
    assert not (tmp_path / "set").exists()
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob(".set.partial/*/sources/*.json")}
    assert 0 < len(done) < 6
    inodes = {path.name: path.stat().st_ino for path in tmp_path.glob(".set.partial/*/set/clips/[!.]*")}

    again = start(folder, tmp_path / "set", *options)
    num_done = len(inodes)

    def kill() -> bool:
        encoders = ray_children(again, "EncodeClip")
        if not encoders or len(list(tmp_path.glob(".set.partial/*/set/clips/[!.]*"))) <= num_done:
            return False
        encoders[0].kill()
        return True

    said = while_running(again, kill)
    assert again.returncode == 0, said
    assert f"{len(done)} of 6 files were done before" in said
    assert f"prepared 6 clips, left out 0: {tmp_path / 'set'}" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips", "set"]
    kept = [path for path in (tmp_path / "set" / "clips").iterdir() if inodes.get(path.name) == path.stat().st_ino]
    assert len(kept) >= len(done)
    run(folder, tmp_path / "other", *options)
    assert PreparedClips.open(tmp_path / "set").fingerprint == PreparedClips.open(tmp_path / "other").fingerprint


@pytest.mark.soak
def test_a_file_that_ends_every_process_is_given_up(tmp_path: Path, networks: list[str]) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in ("a", "b"):
        write_clip(folder / f"{name}.mp4", make_clip(ord(name), 20))
    write_clip(folder / "deadly.mp4", make_clip(0, 6000))  # so long that whoever reads it is found at it
    process = start(folder, tmp_path / "set", *networks, "--resolution", "32")
    killed = []

    def kill() -> bool:
        for reader in ray_children(process, "read_source"):
            if any(file.path.endswith("deadly.mp4") for file in reader.open_files()):
                reader.kill()
                killed.append(reader.pid)
        return False

    said = while_running(process, kill)
    assert process.returncode == 0, said
    assert len(set(killed)) == 3
    assert "deadly.mp4: ended 3 processes that worked on it" in said
    assert f"prepared 2 clips, left out 1: {tmp_path / 'set'}" in said


def test_footage_becomes_aligned_clips(shared: Path, tmp_path: Path, networks: list[str]) -> None:
    """The real footage, and what is no use beside it; compared with clips that were aligned by others."""
    try:
        check_installed()
    except UserError as error:
        pytest.skip(str(error))
    real, folder = shared / "real", tmp_path / "footage"
    folder.mkdir()
    for path in (real / "raw").glob("*.mp4"):
        (folder / path.name).symlink_to(path)
    grey = np.full((50, 240, 320, 3), 90, np.uint8)
    write_clip(folder / "faceless.mp4", Clip("grey", grey, make_clip(0, 50).wave))
    (folder / "text.mp4").write_text("words")
    (folder / "truncated.mp4").write_bytes((real / "raw" / "demo1_video.mp4").read_bytes()[:200_000])
    said = run(folder, tmp_path / "set", "--raw", *networks, "--resolution", "256")
    assert f"prepared 3 clips, left out 3: {tmp_path / 'set'}" in said
    assert any("faceless.mp4: must show one face for 1 s on end, shows one in 0 of" in line for line in said)

    prepared = PreparedClips.open(tmp_path / "set")
    assert [clip.name for clip in prepared.index.clips] == [
        "demo1_video/0000", "demo2_video/0000", "demo2_video/0001",
    ]  # fmt: skip
    assert [clip.num_frames for clip in prepared.index.clips] == [250, 250, 250]
    frames = load_file(prepared.folder / prepared.index.clips[0].file)["frames"][:100]
    own = frames.permute(0, 2, 3, 1).contiguous().numpy()
    others = read_clip(real / "clips" / "demo1_00.mp4")
    psnr = 10 * np.log10(255**2 / np.mean((own.astype(float) - others.frames) ** 2))
    assert psnr > 25
    with FaceMesh() as first, FaceMesh() as second:
        apart = [
            np.abs(anchors(first(a)) - anchors(second(b))).max()
            for a, b in zip(own[::10], others.frames[::10], strict=True)
        ]
    assert max(apart) < 4

    modules = Path(find_spec("mediapipe").submodule_search_locations[0]) / "modules"
    shutil.copytree(modules, tmp_path / "models" / "mediapipe" / "modules")
    with FaceMesh() as first, FaceMesh(tmp_path / "models") as second:
        np.testing.assert_array_equal(first(own[0]), second(own[0]))
