"""Both patches of a pair are cut in one shape, and the PET's alone is turned against the MR's."""

from __future__ import annotations

import numpy as np
import pytest

from models.train.cutting import stack_slices
from models.train.samples import Pose, Scene, draw_pairs, draw_shape
from registration.preprocess import CUBE_VOXELS, blur


def likeness(degrees: float) -> float:
    """Return how like the two patches of a pair are, in the mean, where MR and PET are one volume."""
    rng = np.random.default_rng(5)
    array = blur(rng.random((CUBE_VOXELS,) * 3, dtype=np.float32), np.full(3, 4.0))
    points = rng.integers(40, 88, (16, 3))
    scene = Scene(stack_slices(array), stack_slices(array), points)
    pairs = draw_pairs(scene, points, Pose((degrees, degrees), (0, 1, 2)), rng, augment=True)
    return float(np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(pairs.mr, pairs.pet, strict=True)]))


def test_a_pair_has_one_shape_and_its_pet_is_turned() -> None:
    assert likeness(0) > 0.9
    assert likeness(40) < 0.6


def test_a_shape_is_near_to_a_head_or_to_its_mirror_image() -> None:
    rng = np.random.default_rng(0)
    shapes = np.stack([draw_shape(rng) for _ in range(200)])
    signs = np.sign(np.linalg.det(shapes))

    assert np.abs(signs.mean()) < 0.3
    upright = shapes @ np.stack([np.diag([1, 1, sign]) for sign in signs])
    np.testing.assert_allclose(upright.mean(axis=0), np.eye(3), atol=0.02)
    assert upright.std(axis=0).max() == pytest.approx(0.05, abs=0.01)
