from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from registration.errors import InvalidTransformError, TooFewPointsError
from registration.transforms import RigidTransform, fit_rigid, rotation_about

angles = st.tuples(*[st.floats(-3.1, 3.1)] * 3).map(np.array)
shifts = st.tuples(*[st.floats(-200, 200)] * 3).map(np.array)
transforms = st.builds(RigidTransform.from_parameters, angles, shifts, shifts)
POINTS = np.array([[0.0, 0, 0], [50, 0, 0], [0, 60, 0], [0, 0, 70], [30, -20, 10]])


@given(transforms)
def test_inverse_undoes(fixed_from_moving: RigidTransform) -> None:
    there = fixed_from_moving.apply(POINTS)

    np.testing.assert_allclose(fixed_from_moving.inverse().apply(there), POINTS, atol=1e-9)
    np.testing.assert_allclose((fixed_from_moving @ fixed_from_moving.inverse()).matrix, np.eye(4), atol=1e-9)


@given(transforms, transforms)
def test_product_applies_the_right_one_first(b_from_a: RigidTransform, c_from_b: RigidTransform) -> None:
    np.testing.assert_allclose((c_from_b @ b_from_a).apply(POINTS), c_from_b.apply(b_from_a.apply(POINTS)), atol=1e-9)


@given(transforms)
def test_distances_and_handedness_stay(transform: RigidTransform) -> None:
    moved = transform.apply(POINTS)

    np.testing.assert_allclose(np.linalg.norm(moved[1:] - moved[0], axis=1), np.linalg.norm(POINTS[1:], axis=1))
    assert np.linalg.det(moved[1:4] - moved[0]) > 0


@given(angles, shifts)
def test_centre_of_a_rotation_only_moves_by_the_shift(angle: NDArray[np.float64], shift: NDArray[np.float64]) -> None:
    centre = np.array([5.0, -7.0, 11.0])
    transform = RigidTransform.from_parameters(angle, shift, centre)

    np.testing.assert_allclose(transform.apply(centre[None])[0], centre + shift, atol=1e-9)


def test_quarter_turns_by_hand() -> None:
    x, y, z = np.eye(3)

    np.testing.assert_allclose(rotation_about(np.array([np.pi / 2, 0, 0])) @ y, z, atol=1e-12)
    np.testing.assert_allclose(rotation_about(np.array([0, np.pi / 2, 0])) @ z, x, atol=1e-12)
    np.testing.assert_allclose(rotation_about(np.array([0, 0, np.pi / 2])) @ x, y, atol=1e-12)
    # about x first: y goes to z, which a turn about z leaves
    np.testing.assert_allclose(rotation_about(np.array([np.pi / 2, 0, np.pi / 2])) @ y, z, atol=1e-12)


@pytest.mark.parametrize("angle_deg", [0.0, 1e-4, 30.0, 120.0, 179.999])
def test_angle(angle_deg: float) -> None:
    transform = RigidTransform.from_parameters(np.array([0, np.radians(angle_deg), 0]), np.ones(3), np.zeros(3))

    assert transform.angle_deg == pytest.approx(angle_deg, abs=1e-6)


@pytest.mark.parametrize(
    "matrix",
    [np.diag([1.0, 1, -1, 1]), np.diag([1.001, 1, 1, 1]), np.eye(3), np.full((4, 4), np.nan), np.diag([1.0, 1, 1, 2])],
)
def test_what_is_not_rigid_is_refused(matrix: NDArray[np.float64]) -> None:
    with pytest.raises(InvalidTransformError):
        RigidTransform(matrix)


def test_rounding_is_projected_away_but_not_a_mirror_or_a_scale() -> None:
    rounded = np.round(RigidTransform.from_parameters(np.array([0.1, 0.2, 0.3]), np.ones(3), np.zeros(3)).matrix, 5)

    projected = RigidTransform.from_matrix(rounded)
    np.testing.assert_allclose(projected.rotation @ projected.rotation.T, np.eye(3), atol=1e-14)
    for wrong in (np.diag([1.0, 1, -1, 1]), np.diag([1.01, 1, 1, 1])):
        with pytest.raises(InvalidTransformError, match="mirror"):
            RigidTransform.from_matrix(wrong)


@given(transforms)
def test_fit_finds_an_exact_transform(fixed_from_moving: RigidTransform) -> None:
    found = fit_rigid(POINTS, fixed_from_moving.apply(POINTS))

    np.testing.assert_allclose(found.apply(POINTS), fixed_from_moving.apply(POINTS), atol=1e-7)


@given(transforms, st.integers(0, 1000))
def test_fit_of_noisy_coplanar_points_is_no_mirror_image(fixed_from_moving: RigidTransform, seed: int) -> None:
    rng = np.random.default_rng(seed)
    flat = rng.uniform(-50, 50, (20, 3)) * [1, 1, 0]
    noisy = fixed_from_moving.apply(flat) + rng.normal(0, 2, flat.shape)

    found = fit_rigid(flat, noisy)

    assert np.linalg.det(found.rotation) == pytest.approx(1)
    assert np.linalg.norm(found.apply(flat) - fixed_from_moving.apply(flat), axis=1).mean() < 3


def test_weights_of_zero_leave_points_out() -> None:
    moved = POINTS + np.array([1.0, 2, 3])
    moved[4] += 500

    found = fit_rigid(POINTS, moved, np.array([1.0, 1, 1, 1, 0]))

    np.testing.assert_allclose(found.translation_mm, [1, 2, 3], atol=1e-9)
    assert found.angle_deg == pytest.approx(0, abs=1e-6)


def test_too_few_points_or_points_on_a_line_are_refused() -> None:
    line = np.arange(5.0)[:, None] * [1, 2, 3]

    with pytest.raises(TooFewPointsError, match="2 weighted"):
        fit_rigid(POINTS, POINTS, np.array([1.0, 1, 0, 0, 0]))
    with pytest.raises(TooFewPointsError, match="one line"):
        fit_rigid(line, line)
    with pytest.raises(TooFewPointsError, match="one line"):
        fit_rigid(np.zeros((4, 3)), np.zeros((4, 3)))
