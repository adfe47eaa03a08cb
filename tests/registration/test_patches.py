from __future__ import annotations

import numpy as np

from registration.patches import cut_patches, pad_for_patches


def test_three_planes_through_the_point() -> None:
    array = np.random.default_rng(0).random((70, 80, 90), dtype=np.float32)
    k, j, i = 33, 40, 45

    patch = cut_patches(pad_for_patches(array), np.array([[k, j, i]]))[0]

    assert patch.shape == (3, 64, 64)
    assert patch[:, 32, 32].tolist() == [array[k, j, i]] * 3
    assert patch[0, 30, 33] == array[k, j - 2, i + 1]
    assert patch[1, 30, 33] == array[k - 2, j, i + 1]
    assert patch[2, 30, 33] == array[k - 2, j + 1, i]


def test_beyond_the_edge_is_zero() -> None:
    array = np.ones((64, 64, 64), np.float32)

    corner, opposite = cut_patches(pad_for_patches(array), np.array([[0, 0, 0], [63, 63, 63]]))

    assert corner[0, 31, 40] == 0
    assert corner[0, 32, 32] == 1
    assert opposite[0, 33, 20] == 0
    assert opposite[0].sum() == 33 * 33


def test_one_plane_fills_all_channels() -> None:
    array = np.random.default_rng(0).random((70, 80, 90), dtype=np.float32)
    index = np.array([[33, 40, 45], [0, 79, 12]])

    alone, together = cut_patches(pad_for_patches(array), index, (1,)), cut_patches(pad_for_patches(array), index)

    for channel in range(3):
        np.testing.assert_array_equal(alone[:, channel], together[:, 1])
