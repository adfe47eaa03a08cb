from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registration.preprocess import blur
from registration.resample import Grid, make_spline, resample, sample_points, thin_slices
from registration.transforms import RigidTransform
from registration.volume import Volume

IDENTITY = RigidTransform.identity()


def smooth_volume(shape: tuple[int, int, int] = (14, 16, 18)) -> Volume:
    array = np.random.default_rng(0).random(shape, dtype=np.float32)
    return Volume(blur(array, np.full(3, 1.5)), np.diag([3.0, 2.0, 2.0, 1.0]))


def test_own_grid_gives_back_every_voxel() -> None:
    volume = Volume(np.random.default_rng(1).random((7, 8, 9), dtype=np.float32), np.diag([2.0, 3.0, 1.0, 1.0]))

    np.testing.assert_allclose(resample(volume, volume, IDENTITY), volume.array, atol=2e-6)


def test_one_bright_voxel_by_hand() -> None:
    array = np.zeros((1, 1, 41), np.float32)
    array[0, 0, 20] = 1
    half = np.diag([1.0, 1.0, 1.0, 1.0])
    half[2, 3] = 0.5

    sampled = resample(Volume(array, np.eye(4)), Grid(half, (1, 1, 40)), IDENTITY)

    # weights 1/48, 23/48, 23/48, 1/48 on coefficients sqrt(3) * pole^|n|
    pole = np.sqrt(3) - 2
    expected = np.sqrt(3) * (23 / 48 + 23 / 48 * pole + 1 / 48 * pole + 1 / 48 * pole**2)
    assert sampled[0, 0, 20] == pytest.approx(expected, abs=1e-6)
    assert sampled[0, 0, 19] == pytest.approx(expected, abs=1e-6)
    assert sampled.min() == 0.0  # the spline's undershoot is clipped to the input's range


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_between_slices_are_what_the_spline_has_there(axis: int) -> None:
    spacing_mm = np.full(3, 2.0)
    spacing_mm[axis] = 5.0
    affine = np.diag([*spacing_mm[[2, 1, 0]], 1.0])[:, [2, 1, 0, 3]]
    volume = Volume(np.random.default_rng(2).random((7, 8, 9), dtype=np.float32), affine)

    thin = thin_slices(volume, 2.5)

    expected = list(volume.shape)
    expected[axis] = 2 * expected[axis] - 1
    assert thin.shape == tuple(expected)
    np.testing.assert_allclose(thin.spacing_mm[axis], 2.5)
    np.testing.assert_allclose(thin.array, resample(volume, thin, IDENTITY), atol=2e-6)


def test_slices_are_thinned_until_none_is_thicker_and_a_single_one_stays() -> None:
    volume = Volume(np.random.default_rng(2).random((1, 4, 9), dtype=np.float32), np.diag([2.0, 5.0, 9.0, 1.0]))
    volume = Volume(volume.array, volume.affine[:, [2, 1, 0, 3]])

    thin = thin_slices(volume, 2.0)

    assert thin.shape == (1, 13, 9)
    np.testing.assert_allclose(thin.spacing_mm, [9.0, 1.25, 2.0])
    np.testing.assert_array_equal(thin.array[:, ::4], volume.array)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shift_of_whole_voxels_moves_the_array(axis: int) -> None:
    volume = smooth_volume()
    step_mm = np.zeros(3)
    step_mm[axis] = 2 * volume.spacing_mm[axis]
    shift = RigidTransform.from_parameters(np.zeros(3), step_mm, np.zeros(3))

    moved = resample(volume, volume, shift)

    np.testing.assert_allclose(np.moveaxis(moved, axis, 0)[2:], np.moveaxis(volume.array, axis, 0)[:-2], atol=2e-6)
    assert not np.moveaxis(moved, axis, 0)[:2].any()


def test_a_linear_ramp_stays_one_away_from_the_ends() -> None:
    k, j, i = np.indices((24, 24, 24), dtype=np.float32)
    ramp = Volume(k + 2 * j + 3 * i, np.eye(4))
    points = np.random.default_rng(0).uniform(8, 15, (50, 3))

    values = sample_points(make_spline(ramp), points)

    np.testing.assert_allclose(values, points @ [1, 2, 3], atol=5e-3)


def test_outside_the_field_of_view_is_zero_from_half_a_voxel_on() -> None:
    volume = Volume(np.full((4, 4, 4), 7.0, np.float32) + np.eye(4, dtype=np.float32), np.eye(4))
    points = np.array([[-0.49, 1, 1], [-0.51, 1, 1], [3.49, 1, 1], [3.51, 1, 1]])

    values = sample_points(make_spline(volume), points)

    assert (values > 6.9).tolist() == [True, False, True, False]
    assert values[[1, 3]].tolist() == [0, 0]


@settings(max_examples=15)
@given(st.permutations([0, 1, 2]), st.tuples(*[st.booleans()] * 3))
def test_axis_order_and_direction_of_the_moving_grid_do_not_matter(order: list[int], flips: tuple[bool, ...]) -> None:
    volume = smooth_volume((8, 9, 10))
    affine = volume.affine[:, [*order, 3]].copy()
    array = np.transpose(volume.array, order)
    for axis, flip in enumerate(flips):
        if flip:
            array = np.flip(array, axis)
            affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
            affine[:3, axis] *= -1
    turn = RigidTransform.from_parameters(np.array([0.1, -0.2, 0.3]), np.ones(3), volume.centre_mm)

    np.testing.assert_allclose(resample(Volume(array, affine), volume, turn), resample(volume, volume, turn), atol=2e-5)


def test_direction_is_fixed_from_moving() -> None:
    array = np.zeros((21, 21, 21), np.float32)
    array[10, 10, 14] = 1
    volume = Volume(array, np.eye(4)[[2, 1, 0, 3]])  # i along x, j along y, k along z
    shift = RigidTransform.from_parameters(np.zeros(3), np.array([3.0, 0, 0]), np.zeros(3))

    moved = resample(volume, volume, shift)

    assert np.argwhere(moved == moved.max()).tolist() == [[10, 10, 17]]


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 5), (2, 3, 40)])
def test_thin_volumes(shape: tuple[int, int, int]) -> None:
    volume = Volume(np.random.default_rng(0).random(shape, dtype=np.float32), np.eye(4))

    np.testing.assert_allclose(resample(volume, volume, IDENTITY), volume.array, atol=5e-6)
