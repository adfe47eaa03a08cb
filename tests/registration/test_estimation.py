from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registration.errors import TooFewPointsError
from registration.estimation import estimate, fit_triples
from registration.matching import Matches
from registration.transforms import RigidTransform


def make_matches(truth: RigidTransform, right: int, wrong: int, seed: int = 0) -> Matches:
    rng = np.random.default_rng(seed)
    moving = rng.uniform(-70, 70, (right + wrong, 3))
    fixed = truth.apply(moving) + rng.normal(0, 1.5, moving.shape)
    fixed[right:] = rng.uniform(-90, 90, (wrong, 3))
    return Matches(fixed, moving, np.full(right + wrong, 0.05), np.arange(right + wrong))


@settings(max_examples=10)
@given(st.tuples(*[st.floats(-3, 3)] * 3), st.integers(0, 100))
def test_three_wrong_matches_to_one_right_one_do_not_matter(angles: tuple[float, ...], seed: int) -> None:
    truth = RigidTransform.from_parameters(np.array(angles), np.array([30.0, -50, 10]), np.zeros(3))

    found = estimate(make_matches(truth, 40, 120, seed), 6.0, np.random.default_rng(0))

    off = truth.inverse() @ found.fixed_from_moving
    assert off.angle_deg < 2
    assert np.linalg.norm(off.translation_mm) < 2
    assert found.inliers >= 36


def test_same_seed_same_transform_to_the_bit() -> None:
    matches = make_matches(RigidTransform.identity(), 20, 80)

    one, two = (estimate(matches, 6.0, np.random.default_rng(3)).fixed_from_moving.matrix for _ in range(2))

    assert one.tobytes() == two.tobytes()


def test_triples_keep_their_handedness_even_if_flat() -> None:
    truth = RigidTransform.from_parameters(np.array([0.4, 0.5, 0.6]), np.zeros(3), np.zeros(3))

    rotations, _ = fit_triples(make_matches(truth, 30, 0), 6.0, np.random.default_rng(0))

    assert len(rotations) > 1000
    np.testing.assert_allclose(np.linalg.det(rotations), 1, atol=1e-9)


def test_too_few_matches_and_matches_that_fit_nothing_are_errors() -> None:
    with pytest.raises(TooFewPointsError, match="5 matches, 6 needed"):
        estimate(make_matches(RigidTransform.identity(), 5, 0), 6.0, np.random.default_rng(0))
    scaled = make_matches(RigidTransform.identity(), 10, 0)
    scaled = Matches(scaled.fixed * 3, scaled.moving, scaled.weights, scaled.fixed_index)
    with pytest.raises(TooFewPointsError):
        estimate(scaled, 1.0, np.random.default_rng(0))
