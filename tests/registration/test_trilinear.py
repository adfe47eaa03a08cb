"""Trilinear interpolation gives what a plane through the voxels has, to half of one of its 256 levels."""

from __future__ import annotations

import numpy as np

from registration.trilinear import TOP, pack, sample
from registration.volume import Volume

SHAPE = (6, 7, 9)


def ramp() -> Volume:
    k, j, i = np.indices(SHAPE, dtype=np.float32)
    return Volume(10 * k + 5 * j + 2 * i, np.diag([2.0, 3.0, 4.0, 1.0]))


def test_between_voxels_lies_what_a_plane_has() -> None:
    index = np.random.default_rng(0).uniform(0, np.array(SHAPE) - 1, (500, 3)).T.astype(np.float32)

    where, values = sample(pack(ramp(), 100.0), index)

    np.testing.assert_array_equal(where, np.arange(500))
    np.testing.assert_allclose(values * 100 / TOP, np.array([10, 5, 2]) @ index, atol=0.5 * 100 / TOP + 1e-3)


def test_a_view_ends_half_a_voxel_beyond_the_outermost_centres_and_holds_their_value_till_there() -> None:
    k = np.array([-0.51, -0.49, 0.0, 5.0, 5.49, 5.51], dtype=np.float32)

    where, values = sample(pack(ramp(), TOP), np.stack([k, np.zeros(6), np.zeros(6)]).astype(np.float32))

    np.testing.assert_array_equal(where, [1, 2, 3, 4])
    np.testing.assert_allclose(values, [0, 0, 50, 50])


def test_what_lies_below_nothing_or_above_the_ceiling_is_cut() -> None:
    volume = Volume(np.array([[[-5.0, 20.0, 60.0]]], dtype=np.float32), np.eye(4))

    _, values = sample(pack(volume, 40.0), np.array([[0, 0, 0], [0, 0, 0], [0, 1, 2]], dtype=np.float32))

    np.testing.assert_allclose(values, [0, 128, 255])
