"""Patches cut turned are those of registration where nothing is turned, and follow the matrix where it is."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from models.train.cutting import cut_turned, stack_slices
from registration.patches import HALF, PATCH_VOXELS, cut_patches, pad_for_patches
from registration.preprocess import CUBE_VOXELS

NO_TURN = np.eye(3)
QUARTER = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # takes the patch's j to the volume's i


def blocks() -> NDArray[np.float32]:
    small = np.random.default_rng(3).random((16, 16, 16), dtype=np.float32)
    return np.asarray(np.kron(small, np.ones((8, 8, 8), dtype=np.float32)))


@pytest.mark.parametrize("planes", [(0, 1, 2), (0,)])
def test_unturned_patches_are_those_that_registration_cuts(planes: tuple[int, ...]) -> None:
    array = blocks()
    places = np.random.default_rng(4).integers(0, CUBE_VOXELS, (12, 3))

    cut = cut_turned(stack_slices(array), places.astype(float), np.stack([NO_TURN] * 4), planes)

    np.testing.assert_allclose(cut, cut_patches(pad_for_patches(array), places, planes), atol=1e-6)


def test_a_turned_patch_follows_the_matrix_from_its_own_axes_to_the_volumes() -> None:
    array = blocks()
    place = np.array([60, 70, 50])
    rows, columns = np.indices((PATCH_VOXELS, PATCH_VOXELS)).reshape(2, -1) - HALF
    k, j, i = place[:, None] + QUARTER.astype(int) @ np.stack([np.zeros_like(rows), rows, columns])

    cut = cut_turned(stack_slices(array), place[None].astype(float), QUARTER[None], (0,))

    padded = pad_for_patches(array)
    np.testing.assert_allclose(cut[0, 0].ravel(), padded[k + HALF, j + HALF, i + HALF], atol=1e-6)


def test_halfway_between_voxels_lies_their_mean_and_outside_is_nothing() -> None:
    array = blocks()
    place = np.array([[63.5, 64.0, 64.0], [0.0, 64.0, 64.0]])

    cut = cut_turned(stack_slices(array), place, NO_TURN[None], (0, 1))

    assert cut[0, 0, HALF, HALF] == pytest.approx((array[63, 64, 64] + array[64, 64, 64]) / 2, abs=1e-3)
    assert not cut[1, 1, : HALF - 1].any()
    assert cut[1, 1, HALF:].all()
