"""A prepared set whose numbers tell which frame they belong to, so that every window can be read off a sample."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from latentsync_ray.config.errors import UserError
from latentsync_ray.core.hashing import file_sha256
from latentsync_ray.latentsync.data.clips import FORMAT, Index, PreparedClips, keyed_generator, save_clip
from latentsync_ray.latentsync.data.media import face_mask

RESOLUTION, NUM_LAYERS, WIDTH = 32, 5, 6
LENGTHS = {"a/00": 40, "b/00": 12, "c/00": 25, "d/00": 8, "e/00": 30, "f/00": 60}
HELD_OUT = {"e/00", "f/00"}


def prepare_set(folder: Path, lengths: dict[str, int], held_out: set[str]) -> Path:
    """Frame i of clip k reads 100 k + i in its latents; states and mel columns read their own number."""
    folder.mkdir()
    records = []
    for k, (name, length) in enumerate(sorted(lengths.items())):
        times = torch.arange(length).float()
        latents = (100 * k + times)[:, None, None, None].expand(length, 4, 4, 4) + torch.arange(4)[:, None, None] / 4
        tensors = {
            "frames": times.to(torch.uint8)[:, None, None, None].expand(length, 3, RESOLUTION, RESOLUTION),
            "latents": latents,
            "masked_latents": -latents,
            "audio_features": torch.arange(2.0 * length)[:, None, None].expand(-1, NUM_LAYERS, WIDTH),
            "mel": torch.arange(16 * length // 5 + 1).float().expand(80, -1),
            "wave": torch.arange(640 * length).to(torch.int16),
        }
        record = save_clip(folder, name, tensors)
        records.append(replace(record, split="validation" if name in held_out else "train"))
    save_file({"mask": face_mask(RESOLUTION)}, folder / "mask.safetensors")
    Index(
        format=FORMAT,
        source="test",
        resolution=RESOLUTION,
        fps=25,
        latent_shape=[4, 4, 4],
        audio_shape=[NUM_LAYERS, WIDTH],
        mask_sha256=file_sha256(folder / "mask.safetensors"),
        vae_sha256="v",
        audio_encoder_sha256="a",
        clips=records,
    ).write(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_set(tmp_path_factory.mktemp("sets") / "set", LENGTHS, HELD_OUT)


@pytest.fixture(scope="module")
def clips(folder: Path) -> PreparedClips:
    return PreparedClips.open(folder)


def starts(sample: dict[str, Any]) -> tuple[int, int]:
    """The first frame of a sample's window and of its reference window."""
    clip = sorted(LENGTHS).index(sample["name"])
    return int(sample["latents"][0, 0, 0, 0]) - 100 * clip, int(sample["ref_latents"][0, 0, 0, 0]) - 100 * clip


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**40), step=st.integers(0, 10**6), index=st.integers(0, 512), num_frames=st.integers(1, 40)
)
def test_every_part_of_a_sample_shows_the_same_window(
    clips: PreparedClips, seed: int, step: int, index: int, num_frames: int
) -> None:
    sample = clips.train_sample(seed, step, index, num_frames)
    start, ref_start = starts(sample)
    length = LENGTHS[sample["name"]]
    times = start + torch.arange(num_frames).float()
    assert sample["name"] not in HELD_OUT
    assert 0 <= start <= length - num_frames and 0 <= ref_start <= length - num_frames

    assert sample["latents"].shape == sample["ref_latents"].shape == (4, num_frames, 4, 4)
    assert sample["latents"].equal(-sample["masked_latents"])
    assert (sample["latents"] - sample["latents"][:, :1]).equal(
        torch.arange(num_frames).float()[None, :, None, None].expand(4, -1, 4, 4)
    )
    assert (sample["ref_latents"] - sample["latents"] == ref_start - start).all()
    assert sample["frames"].shape == (3, num_frames, RESOLUTION, RESOLUTION)
    assert sample["frames"][0, :, 0, 0].equal(times.to(torch.uint8))
    assert sample["masks"].equal(face_mask(RESOLUTION)[::8, ::8].expand(1, num_frames, 4, 4))
    own_states = sample["audio_features"].unflatten(1, (10, NUM_LAYERS))[:, 4:6, 0, 0]
    assert own_states.equal(torch.stack([2 * times, 2 * times + 1], dim=1))
    columns = -(-16 * num_frames // 5)
    assert sample["mel"].shape == (1, 80, columns)
    assert sample["mel"][0, 0].equal(16 * start // 5 + torch.arange(columns).float())


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 25))
def test_the_reference_window_does_not_overlap_where_it_need_not(
    clips: PreparedClips, step: int, num_frames: int
) -> None:
    sample = clips.train_sample(0, step, 0, num_frames)
    start, ref_start = starts(sample)
    last = LENGTHS[sample["name"]] - num_frames
    assert abs(start - ref_start) >= min(num_frames, max(start, last - start))


def test_all_windows_and_reference_windows_are_drawn_evenly(clips: PreparedClips) -> None:
    samples = [clips.train_sample(5, step, 0, 12) for step in range(1200)]
    assert Counter(sample["name"] for sample in samples).keys() == {"a/00", "b/00", "c/00"}
    longest = [starts(sample) for sample in samples if sample["name"] == "a/00"]
    assert len(longest) == pytest.approx(400, abs=60)
    assert {start for start, _ in longest} == set(range(29))
    at_twelve = {ref for start, ref in longest if start == 12}
    assert at_twelve == {0, 24, 25, 26, 27, 28}


def test_a_sample_is_a_pure_function_of_its_arguments(folder: Path, clips: PreparedClips) -> None:
    """The same whoever asks, in whatever order; another for another step, index or seed."""
    first = clips.train_sample(1, 2, 3, 8)
    kept = {key: value.clone() for key, value in first.items() if key != "name"}
    first["latents"].zero_()  # a sample is the caller's own: writing to it changes nothing
    first["mel"].zero_()
    for step in range(20):
        clips.train_sample(1, step, 3, 8)
    for source in (clips, PreparedClips.open(folder)):
        again = source.train_sample(1, 2, 3, 8)
        assert again["name"] == first["name"]
        assert all(again[key].equal(value) for key, value in kept.items())
    keys = [(1, 2, 3), (1, 2, 4), (1, 3, 3), (2, 2, 3), (3, 2, 1)]
    draws = [keyed_generator(seed, "train_sample", *key).random() for seed, *key in keys]
    draws.append(keyed_generator(1, "validation_samples", 2, 3).random())
    assert len(set(draws)) == len(draws)


@pytest.mark.parametrize("num_samples", [1, 2, 3, 8])
def test_validation_samples_are_fixed_and_spread(clips: PreparedClips, num_samples: int) -> None:
    samples = clips.validation_samples(num_samples, 8, seed=3)
    again = clips.validation_samples(num_samples, 8, seed=3)
    assert all(a["latents"].equal(b["latents"]) for a, b in zip(samples, again, strict=True))
    counts = Counter(sample["name"] for sample in samples)
    assert set(counts) <= HELD_OUT and len(counts) == min(num_samples, 2)
    assert max(counts.values()) - min(counts.values()) <= 1
    if num_samples == 8:
        inside = sorted(starts(sample)[0] for sample in samples if sample["name"] == "f/00")
        assert [start * 4 // 53 for start in inside] == [0, 1, 2, 3]


def test_too_few_frames_are_an_error_not_a_loop(clips: PreparedClips) -> None:
    assert clips.train_sample(0, 0, 0, 40)["name"] == "a/00"
    with pytest.raises(UserError, match="no train clip has num_frames = 41 frames, the longest of 4 has 40"):
        clips.train_sample(0, 0, 0, 41)
    with pytest.raises(UserError, match="no validation clip has num_frames = 61"):
        clips.validation_samples(2, 61, 0)


def test_a_damaged_clip_is_named(tmp_path: Path) -> None:
    folder = prepare_set(tmp_path / "set", {"a": 20, "b": 20}, {"b"})
    clips = PreparedClips.open(folder)
    (damaged,) = (folder / "clips").glob("a-*")
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    assert clips.validation_samples(1, 8, 0)[0]["name"] == "b"
    with pytest.raises(UserError, match=f"{damaged}.*damaged; prepare the set again"):
        clips.train_sample(0, 0, 0, 8)
    damaged.unlink()
    with pytest.raises(UserError, match=f"{damaged}.* missing; prepare the set again"):
        PreparedClips.open(folder)


def test_names_that_a_filesystem_would_confuse_stay_apart(tmp_path: Path) -> None:
    lengths = {"a/b": 20, "a_b": 21, "A_b": 22, "../x": 23, "ü" * 300: 24}
    clips = PreparedClips.open(prepare_set(tmp_path / "set", lengths, {"a/b"}))
    files = [clip.file.lower() for clip in clips.index.clips]
    assert len(set(files)) == len(lengths)
    assert all(
        (tmp_path / "set" / file).resolve().parent == tmp_path / "set" / "clips" for file in files if "A" not in file
    )
    assert {clips.train_sample(0, step, 0, 8)["name"] for step in range(60)} == lengths.keys() - {"a/b"}


def test_a_whole_clip_has_its_sound_and_samples_do_not(clips: PreparedClips) -> None:
    record = clips.usable("validation", 31)[0]
    assert record.name == "f/00"
    whole = clips.whole(record)
    assert whole["wave"].equal(torch.arange(640 * 60).to(torch.int16)) and len(whole["frames"]) == 60
    assert "wave" not in clips.train_sample(0, 0, 0, 8)


def test_the_fingerprint_names_the_contents(tmp_path: Path) -> None:
    one = PreparedClips.open(prepare_set(tmp_path / "one", {"a": 20, "b": 20}, {"b"}))
    same = PreparedClips.open(prepare_set(tmp_path / "same", {"a": 20, "b": 20}, {"b"}))
    assert one.fingerprint == same.fingerprint
    others = [
        prepare_set(tmp_path / "longer", {"a": 21, "b": 20}, {"b"}),
        prepare_set(tmp_path / "split", {"a": 20, "b": 20}, {"a"}),
        prepare_set(tmp_path / "renamed", {"a": 20, "c": 20}, {"c"}),
    ]
    assert len({one.fingerprint, *(PreparedClips.open(other).fingerprint for other in others)}) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "is not JSON"),
        (lambda text: "[1]", "format must be 2, is None"),
        (lambda text: text.replace('"format": 2', '"format": 1'), "format must be 2, is 1"),
        (lambda text: text.replace('"resolution"', '"size"'), "fields are missing or unknown"),
        (lambda text: text.replace('"validation"', '"train"'), "fingerprint must be .* the file was changed"),
    ],
)
def test_a_damaged_index_is_named(tmp_path: Path, change: Any, message: str) -> None:
    folder = prepare_set(tmp_path / "set", {"a": 20, "b": 20}, {"b"})
    (folder / "index.json").write_text(change((folder / "index.json").read_text()))
    with pytest.raises(UserError, match=rf"index\.json: {message}.*prepare the set again"):
        PreparedClips.open(folder)


def test_a_folder_that_is_no_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"index\.json: cannot be read"):
        PreparedClips.open(tmp_path)


def test_the_index_is_plain_json(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    assert index["fingerprint"] == PreparedClips.open(folder).fingerprint
    assert [clip["split"] for clip in index["clips"]] == ["train"] * 4 + ["validation"] * 2
