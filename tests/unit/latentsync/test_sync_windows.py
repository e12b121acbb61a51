"""Windows of several places of one clip, on a set whose frames and mel columns tell where they come from."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_clips import prepare_set

from latentsync_ray.config.errors import UserError
from latentsync_ray.latentsync.data.clips import PreparedClips
from latentsync_ray.latentsync.syncnet.windows import SyncWindows, held_out_windows

LENGTHS = {"a/00": 40, "b/00": 12, "c/00": 25, "d/00": 15, "e/00": 30, "f/00": 60}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> PreparedClips:
    return PreparedClips.open(prepare_set(tmp_path_factory.mktemp("sets") / "set", LENGTHS, {"d/00", "e/00", "f/00"}))


def starts(frames: torch.Tensor) -> list[int]:
    return frames[:, 0, 0, 0, 0].tolist()


@settings(deadline=None)
@given(seed=st.integers(0, 2**40), step=st.integers(0, 10**6), index=st.integers(0, 512), count=st.integers(2, 4))
def test_the_windows_of_a_sample(clips: PreparedClips, seed: int, step: int, index: int, count: int) -> None:
    """Apart from each other, within one clip, picture and sound of the same time."""
    frames, mels = SyncWindows(clips, 8, count).train_windows(seed, step, index)
    assert (frames.shape, frames.dtype) == ((count, 3, 8, 32, 32), torch.uint8)
    assert (mels.shape, mels.dtype) == ((count, 1, 80, 26), torch.float32)
    found = starts(frames)
    assert all(later - earlier >= 4 for earlier, later in pairwise(found))
    for start, window, mel in zip(found, frames, mels, strict=True):
        assert window[0, :, 0, 0].tolist() == list(range(start, start + 8))
        assert mel[0, 0, 0] == start * 80 // 25
    again, _ = SyncWindows(clips, 8, count).train_windows(seed, step, index)
    assert starts(again) == found


def test_every_part_of_the_key_counts(clips: PreparedClips) -> None:
    windows = SyncWindows(clips, 8)
    keys = [(0, 0, i) for i in range(20)], [(0, i, 0) for i in range(20)], [(i, 0, 0) for i in range(20)]
    for some in keys:
        assert len({tuple(starts(windows.train_windows(*key)[0])) for key in some}) > 10
    drawn = [starts(windows.train_windows(0, 0, i)[0]) for i in range(400)]
    assert {min(found) for found in drawn} >= {0, 1} and max(max(found) for found in drawn) == 40 - 8


def test_held_out_windows_follow_each_other(clips: PreparedClips) -> None:
    found = [(starts(frames), len(mels)) for frames, mels in held_out_windows(clips, 8, 100)]
    assert found == [([0, 8, 16], 3), ([0, 8, 16, 24, 32, 40, 48], 7)]  # d/00 holds one window alone


def test_too_many_held_out_windows_are_thinned_evenly(clips: PreparedClips) -> None:
    assert [starts(frames) for frames, _ in held_out_windows(clips, 8, 7)] == [[0, 8, 16], [0, 16, 32]]
    assert [starts(frames) for frames, _ in held_out_windows(clips, 8, 3)] == [[0, 8, 16]]


def test_clips_that_are_too_short(clips: PreparedClips) -> None:
    with pytest.raises(UserError, match=r"no train clip has the 42 frames .* the longest of 3 has 40"):
        SyncWindows(clips, 28)
    with pytest.raises(UserError, match=r"no validation clip has the 62 frames .* the longest of 3 has 60"):
        held_out_windows(clips, 31, 100)
