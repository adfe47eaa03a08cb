from __future__ import annotations

import numpy as np
import pytest

from registration.errors import EmptyVolumeError, InvalidVolumeError
from registration.preprocess import (
    blur,
    check_signal,
    find_foreground,
    find_view,
    make_cube,
    make_cube_grid,
    normalise,
    otsu,
    prepare_fixed,
    prepare_moving,
    shrink,
    smooth,
)
from registration.resample import make_spline, sample_grid
from registration.transforms import RigidTransform
from registration.volume import Volume


def ball(middle: tuple[float, float, float], radius: float, shape: tuple[int, int, int] = (40, 44, 48)) -> Volume:
    k, j, i = np.indices(shape)
    inside = (k - middle[0]) ** 2 + (j - middle[1]) ** 2 + (i - middle[2]) ** 2 < radius**2
    return Volume(inside.astype(np.float32) * 100, np.diag([3.0, 3.0, 3.0, 1.0]))


@pytest.mark.parametrize(
    ("array", "kind", "words"),
    [
        (np.zeros((4, 4, 4)), EmptyVolumeError, "value 0 everywhere"),
        (np.full((4, 4, 4), 7.5), EmptyVolumeError, "value 7.5 everywhere"),
        (np.where(np.eye(4)[None] > 0, np.nan, 1.0), InvalidVolumeError, "4 voxels not finite"),
        (np.where(np.eye(4)[None] > 0, np.inf, 1.0), InvalidVolumeError, "fixed volume"),
    ],
)
def test_a_volume_without_signal_is_refused(array: np.ndarray, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        check_signal(Volume(array, np.eye(4)), "fixed")


def test_a_speck_is_no_head() -> None:
    with pytest.raises(EmptyVolumeError, match=r"moving volume holds .* ml of signal, 20 ml needed"):
        find_foreground(ball((20, 20, 20), 3), "moving")


def test_foreground_is_seen_every_4_mm_where_it_lies() -> None:
    k, j, i = np.indices((16, 80, 80))
    inside = ((k - 8) * 5) ** 2 + (j - 37) ** 2 + (i - 42) ** 2 < 30**2
    affine = np.array([[0, 0, 1, 7], [0, 1, 0, -8], [5, 0, 0, 9], [0, 0, 0, 1.0]])

    threshold, points_mm, values = find_foreground(Volume(inside * np.float32(100), affine), "fixed")

    assert 0 < threshold < 100
    np.testing.assert_allclose(points_mm.mean(axis=0), [42 + 7, 37 - 8, 8 * 5 + 9], atol=1.0)
    assert len(points_mm) * 5 * 4 * 4 == pytest.approx(4 / 3 * np.pi * 30**3, rel=0.05)
    assert (values == 100).all()


def test_centres_are_the_balls_middle() -> None:
    volume = ball((18, 24, 20), 14)

    for prepared in (prepare_fixed(volume), prepare_moving(volume)):
        np.testing.assert_allclose(prepared.centre_mm, [54, 72, 60], atol=0.5)


def test_the_neck_does_not_pull_the_heads_middle_down() -> None:
    array = np.zeros((100, 40, 40), np.float32)
    array[40:100] = 100  # 180 mm of head and 120 mm of neck along S
    array[:40, 10:30, 10:30] = 100
    affine = np.eye(4)[[2, 1, 0, 3]] * [3, 3, 3, 1]

    centre = prepare_fixed(Volume(array, affine)).centre_mm

    assert centre[2] == pytest.approx(300 - 170 / 2, abs=8)


def test_shrinking_averages_whole_voxels_and_keeps_places() -> None:
    volume = Volume(np.arange(8 * 7 * 6, dtype=np.float32).reshape(8, 7, 6), np.diag([1.0, 0.6, 3.0, 1.0]))

    small = shrink(volume)

    assert small.shape == (4, 2, 6)  # factors 2, 3 and 1
    assert small.spacing_mm.tolist() == pytest.approx([2.0, 1.8, 3.0])
    assert small.array[1, 1, 2] == pytest.approx(volume.array[2:4, 3:6, 2].mean())
    # the first averaged voxel lies between the voxels it was made of
    np.testing.assert_allclose(small.affine[:3, 3], [0.5, 0.6, 0.0])


def test_blur_keeps_the_sum_and_widens_by_sigma() -> None:
    array = np.zeros((33, 35, 37), np.float32)
    array[16, 17, 18] = 1
    sigmas = np.array([2.0, 1.5, 2.5])

    blurred = blur(array, sigmas)

    assert blurred.sum() == pytest.approx(1, abs=1e-4)
    for axis, (sigma, middle) in enumerate(zip(sigmas, (16, 17, 18), strict=True)):
        profile = blurred.sum(axis=tuple({0, 1, 2} - {axis}))
        spread = np.sqrt(profile @ (np.arange(len(profile)) - middle) ** 2)
        assert spread == pytest.approx(sigma, rel=0.03)


def test_smoothing_is_in_mm() -> None:
    array = np.zeros((31, 31, 31), np.float32)
    array[15, 15, 15] = 1

    smoothed = smooth(Volume(array, np.diag([1.0, 2.0, 4.0, 1.0])), 8.0).array

    # half the top at half the width: 4 mm away
    top = smoothed[15, 15, 15]
    assert smoothed[19, 15, 15] / top == pytest.approx(0.5, abs=0.01)
    assert smoothed[15, 17, 15] / top == pytest.approx(0.5, abs=0.01)
    assert smoothed[15, 15, 16] / top == pytest.approx(0.5, abs=0.01)


def test_otsu_splits_two_levels() -> None:
    rng = np.random.default_rng(0)
    array = np.concatenate([rng.normal(10, 2, 5000), rng.normal(100, 10, 3000)]).astype(np.float32)

    assert 20 < otsu(array) < 75


def test_normalise_by_hand() -> None:
    values = normalise(np.array([-1.0, 0.0, 30.0, 90.0], np.float32), bright=40.0)

    np.testing.assert_allclose(values, [0, 0, 0.5, 1.0])


def test_the_cube_lies_round_its_centre_along_s_p_and_l() -> None:
    centre = np.array([10.0, -20.0, 30.0])
    grid = make_cube_grid(centre)

    np.testing.assert_allclose((grid.affine @ [63.5, 63.5, 63.5, 1])[:3], centre)
    np.testing.assert_allclose(grid.affine[:3, :3] @ [1, 0, 0], [0, 0, 2])
    np.testing.assert_allclose(grid.affine[:3, :3] @ [0, 1, 0], [0, 2, 0])


def test_a_cube_shows_the_volume_where_the_transform_puts_it() -> None:
    volume = prepare_moving(ball((20, 20, 20), 12))
    shift = RigidTransform.from_parameters(np.zeros(3), np.array([0.0, 0.0, 20.0]), np.zeros(3))
    grid = make_cube_grid(volume.centre_mm)

    cube = make_cube(volume, grid, shift)

    index = np.argwhere(cube.foreground).mean(axis=0)
    np.testing.assert_allclose((grid.affine @ [*index, 1])[:3] - volume.centre_mm, [0, 0, 20], atol=0.3)
    assert cube.array.min() >= 0
    assert cube.array.max() <= 1


def test_a_view_ends_where_interpolation_ends() -> None:
    affine = np.array([[0, 0, 2.0, -50], [0, 2.5, 0, -40], [3.0, 0, 0, -60], [0, 0, 0, 1]])
    volume = Volume(np.ones((40, 30, 50), dtype=np.float32), affine)
    grid = make_cube_grid(np.array([5.0, -3, 2]))
    pose = RigidTransform.from_parameters(np.radians([10, -20, 30]), np.array([12.0, 7, -9]), np.zeros(3))

    view = find_view(volume, grid, pose)

    assert 0.01 < view.mean() < 0.5
    np.testing.assert_array_equal(view, sample_grid(make_spline(volume), grid, pose) > 0.5)
