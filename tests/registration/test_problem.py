from __future__ import annotations

import numpy as np

from registration.preprocess import prepare_fixed
from registration.problem import COARSE_POINTS, choose_voxels
from tests.registration.heads import make_head


def test_voxels_are_drawn_evenly_and_the_first_of_them_are_spread_as_well() -> None:
    fixed = prepare_fixed(make_head(is_pet=False))

    drawn, again = (choose_voxels(fixed, np.random.default_rng(seed)) for seed in (0, 1))

    slices, others = (np.bincount(index[:, 0], minlength=fixed.volume.shape[0]) for index in (drawn, again))
    assert np.abs(slices - others).max() <= 2  # drawn anywhere, they differ by far more
    assert not np.array_equal(drawn, again)
    np.testing.assert_allclose(drawn[:COARSE_POINTS].mean(axis=0), drawn.mean(axis=0), atol=2)
