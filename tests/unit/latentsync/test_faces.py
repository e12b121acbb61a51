"""From points to pictures: what the fit gives back, where stretches begin and end, what a warp shows."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentsync_ray.config.errors import UserError
from latentsync_ray.latentsync.data.facemesh import check_installed
from latentsync_ray.latentsync.data.faces import (
    MAX_CLIP_FRAMES,
    MIN_CLIP_FRAMES,
    TEMPLATE,
    alignment,
    anchors,
    is_cut,
    lies_inside,
    similarity_transform,
    smooth,
    stretches,
    thumbnail,
    warp,
)

FACE = np.array([[400.0, 300.0], [520.0, 310.0], [455.0, 365.0]])

angles, scales = st.floats(-np.pi, np.pi), st.floats(0.05, 20)
shifts = st.tuples(st.floats(-2000, 2000), st.floats(-2000, 2000)).map(np.array)


def similarity(angle: float, scale: float, shift: np.ndarray) -> np.ndarray:
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.column_stack([scale * turn, shift])


def apply(transform: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ transform[:, :2].T + transform[:, 2]


@given(angles, scales, shifts)
def test_a_similarity_is_found_again(angle: float, scale: float, shift: np.ndarray) -> None:
    true = similarity(angle, scale, shift)
    np.testing.assert_allclose(similarity_transform(FACE, apply(true, FACE)), true, atol=1e-6 * (1 + scale))


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_no_other_similarity_fits_better(seed: int, mirrored: bool) -> None:
    """Also where a reflection would, which is none."""
    rng = np.random.default_rng(seed)
    source, target = rng.normal(0, 10, (2, 3, 2))
    if mirrored:
        target = source * [-1, 1] + rng.normal(0, 0.1, (3, 2))
    best = similarity_transform(source, target)
    assert np.linalg.det(best[:, :2]) > 0
    error = ((apply(best, source) - target) ** 2).sum()
    for step in rng.normal(0, 1e-3, (50, 4)):
        scale, turn = np.hypot(*best[:, 0]), np.arctan2(best[1, 0], best[0, 0])
        near = similarity(turn + step[0], scale + step[1], best[:, 2] + step[2:])
        assert ((apply(near, source) - target) ** 2).sum() >= error


@pytest.mark.parametrize("resolution", [256, 512])
def test_a_face_like_the_template_comes_to_lie_on_it(resolution: int) -> None:
    """As the real clips' README has it: eyebrows near (58, 51) and (198, 51), nose near (128, 102) of 256."""
    face = apply(similarity(0.3, 4.0, np.array([500.0, 200.0])), np.array(TEMPLATE))
    placed = apply(alignment(face, resolution), face) * 256 / resolution
    np.testing.assert_allclose(placed, [[58.03, 51.2], [197.97, 51.2], [128, 102.4]], atol=0.01)


def test_anchors_are_means_of_the_mesh_s_vertices() -> None:
    mesh = np.stack([np.arange(478.0), np.zeros(478)], axis=1)
    assert anchors(mesh)[:, 0].tolist() == pytest.approx([682 / 10, 2980 / 10, 1179 / 9])


def walk(length: int) -> np.ndarray:
    """A face that moves a little with every frame."""
    return FACE + np.arange(length)[:, None, None] * 0.5


def test_stretches_end_where_face_or_scene_does() -> None:
    points, cuts = walk(400), np.zeros(400, bool)
    points[30:32] = np.nan  # no face
    points[70:] += 200  # another face
    cuts[120] = True  # another scene
    points[140] = np.nan  # what is left before is too short
    assert stretches(points, cuts) == [
        range(30), range(32, 70), range(70, 120), range(141, 270), range(270, 400),
    ]  # fmt: skip


@given(st.integers(0, 2000))
def test_a_long_stretch_is_shared_out_evenly(length: int) -> None:
    found = stretches(walk(length), np.zeros(length, bool))
    if length < MIN_CLIP_FRAMES:
        assert found == []
        return
    assert [frame for stretch in found for frame in stretch] == list(range(length))
    lengths = [len(stretch) for stretch in found]
    assert max(lengths) <= MAX_CLIP_FRAMES and max(lengths) - min(lengths) <= 1
    assert len(found) == -(-length // MAX_CLIP_FRAMES)


@given(st.integers(1, 60), shifts)
def test_smoothing_keeps_what_is_steady_and_calms_what_is_not(length: int, shift: np.ndarray) -> None:
    steady = np.broadcast_to(FACE + shift, (length, 3, 2))
    np.testing.assert_allclose(smooth(steady), steady)
    if length > 9:
        line = walk(length)
        np.testing.assert_allclose(smooth(line)[4:-4], line[4:-4])  # a symmetric window keeps a straight line
        noise = np.random.default_rng(length).normal(0, 1, (length, 3, 2))
        assert smooth(line + noise)[4:-4].std() - smooth(line)[4:-4].std() < 1
    impulse = np.zeros((21, 3, 2))
    impulse[10] = 1
    response = smooth(impulse)[:, 0, 0]
    assert response.sum() == pytest.approx(1) and response[11] / response[10] == pytest.approx(np.exp(-0.5))


def test_a_folder_without_models_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^--face-models: {tmp_path} must hold mediapipe/modules/"):
        check_installed(tmp_path)


def test_a_cut_is_a_change_of_the_whole_picture() -> None:
    rng = np.random.default_rng(0)
    scene, other = rng.integers(0, 256, (2, 320, 180, 3), dtype=np.uint8)
    moved = scene.copy()
    moved[100:160, 60:120] = 255
    assert not is_cut(thumbnail(scene), thumbnail(moved))
    assert is_cut(thumbnail(scene), thumbnail(other))
    assert is_cut(thumbnail(scene), thumbnail(scene[:100]))


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_a_warp_takes_marks_where_the_transform_says(scale: float) -> None:
    """Discs over the three points of a turned face, looked for in the picture."""
    face = apply(similarity(0.2, scale, np.array([300.0, 250.0])), FACE - FACE.mean(axis=0))
    rows, columns = np.mgrid[:500, :600] + 0.5
    frame = np.full((500, 600, 3), 30, np.uint8)
    for channel, (x, y) in enumerate(face):
        frame[np.hypot(columns - x, rows - y) < 10 * scale, channel] = 250
    transform = alignment(face, 128)
    picture = warp(frame, transform, 128).astype(float)
    assert picture.shape == (128, 128, 3)
    rows, columns = np.mgrid[:128, :128] + 0.5
    for channel, expected in enumerate(apply(transform, face)):
        weights = (picture[..., channel] > 140) & (picture.sum(axis=2) > 290) & (picture[..., channel - 1] < 100)
        seen = [(columns * weights).sum() / weights.sum(), (rows * weights).sum() / weights.sum()]
        np.testing.assert_allclose(seen, expected, atol=0.3)


def test_a_warp_by_the_identity_copies_and_beyond_the_edge_is_grey() -> None:
    frame = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    np.testing.assert_array_equal(warp(frame, np.eye(2, 3), 40), frame)
    shifted = warp(frame, np.array([[1.0, 0, 10], [0, 1, 0]]), 40)
    np.testing.assert_array_equal(shifted[:, 10:], frame[:, :30])
    assert (shifted[:, :10] == 127).all()


def test_a_face_twice_as_large_is_averaged_not_thinned_out() -> None:
    """A chequerboard of single pixels becomes grey."""
    frame = np.indices((400, 400)).sum(axis=0) % 2 * np.ones((3, 1, 1)) * 255
    picture = warp(np.ascontiguousarray(frame.transpose(1, 2, 0)).astype(np.uint8), np.eye(2, 3) / 4, 100)
    assert abs(picture.astype(int) - 127).max() <= 1


@pytest.mark.parametrize(
    ("height", "width", "enough"),
    [
        (100, 100, True),
        (90, 100, True),  # 90 % of the whole; nothing of the mask is lost
        (89, 100, False),
        (100, 91, True),
        (100, 90, True),
        (100, 89, False),
        (81, 200, False),
    ],
)
def test_a_cutout_must_lie_inside_the_picture_above_all_where_it_is_masked(
    height: int, width: int, enough: bool
) -> None:
    mask = np.zeros((100, 100), bool)
    mask[20:80, 10:90] = True
    assert lies_inside(np.eye(2, 3), (height, width), mask) == enough


@pytest.mark.parametrize(("rows", "enough"), [(99, True), (98, True), (97, False)])
def test_98_percent_of_the_masked_region_must_lie_inside(rows: int, enough: bool) -> None:
    assert lies_inside(np.eye(2, 3), (rows, 100), np.ones((100, 100), bool)) == enough
