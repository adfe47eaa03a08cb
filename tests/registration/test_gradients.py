from __future__ import annotations

import numpy as np

from registration.gradients import describe_gradients, direction_maps, root_sift, sample_maps


def test_a_slope_to_the_right_fills_the_first_direction_and_its_opposite_the_fifth() -> None:
    flat, right = np.zeros((8, 8, 8), np.float32), np.ones((8, 8, 8), np.float32)

    there, back = direction_maps(flat, right), direction_maps(flat, -right)

    assert there[2, 2, 2].argmax() == 0
    assert back[2, 2, 2].argmax() == 4
    assert direction_maps(right, flat)[2, 2, 2].argmax() == 2


def test_sampling_between_voxels_is_linear_and_stops_at_the_edge() -> None:
    maps = np.arange(4, dtype=np.float32).reshape(4, 1, 1, 1) * np.ones((4, 4, 4, 2), np.float32)

    values = sample_maps(maps, np.array([[1.25, 2, 2], [-3, 0, 0], [9, 3, 3]], np.float32))

    np.testing.assert_allclose(values, np.array([[1.25, 1.25], [0, 0], [3, 3]]))


def test_root_sift_has_unit_length_and_knows_no_scale() -> None:
    values = np.random.default_rng(0).random((5, 128), dtype=np.float32)

    np.testing.assert_allclose(np.linalg.norm(root_sift(values), axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(root_sift(values * 7), root_sift(values), rtol=1e-4)
    assert not root_sift(np.zeros((1, 128), np.float32)).any()


def test_a_descriptor_moves_with_its_place() -> None:
    rng = np.random.default_rng(0)
    array = np.zeros((96, 96, 96), np.float32)
    array[30:50, 34:60, 40:52] = 1
    array[44:64, 30:40, 30:70] += 0.5
    array += 0.01 * rng.random(array.shape, dtype=np.float32)
    moved = np.roll(array, (6, -4, 8), axis=(0, 1, 2))
    index = np.array([[44, 44, 44], [50, 40, 48]])

    here, there = describe_gradients(array, index), describe_gradients(moved, index + np.array([6, -4, 8]))

    assert here.shape == (2, 384)
    np.testing.assert_allclose(np.linalg.norm(here, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose((here * there).sum(axis=1), 1, atol=1e-3)
    assert (here[0] * here[1]).sum() < 0.95


def test_one_plane_is_the_first_part_of_three() -> None:
    array = np.random.default_rng(3).random((64, 64, 64), dtype=np.float32)
    index = np.array([[30, 32, 34]])

    alone, together = describe_gradients(array, index, (0,)), describe_gradients(array, index)

    assert alone.shape == (1, 128)
    np.testing.assert_allclose(together[:, :128], alone / np.sqrt(3), rtol=1e-5)
