"""Rigid transforms between patient coordinate systems.

Flow: estimation | refinement > [transforms] > resample | pipeline
Never: scale, shear or mirror images; an angle convention outside `from_parameters`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from registration.errors import InvalidTransformError, TooFewPointsError

ORTHONORMAL_TOLERANCE = 1e-6
COLLINEAR_RATIO = 1e-6  # second singular value over the first, below which points lie on one line


@dataclass(frozen=True, eq=False)
class RigidTransform:
    """A rotation and a translation of LPS mm, read-only; named `<to>_from_<from>` wherever it is held.

    Attributes
    ----------
    matrix : (4, 4) float64
        `matrix @ (x, y, z, 1)`; rotation orthonormal with determinant +1 to within 1e-6.

    Raises
    ------
    InvalidTransformError
        If the matrix is not finite or not rigid.
    """

    matrix: NDArray[np.float64]

    def __post_init__(self) -> None:
        matrix = np.array(self.matrix, dtype=np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
            raise InvalidTransformError(f"matrix of shape {matrix.shape}, a finite (4, 4) one needed")
        if np.abs(matrix[3] - [0, 0, 0, 1]).max() > ORTHONORMAL_TOLERANCE:
            raise InvalidTransformError(f"last row is {matrix[3].tolist()}, [0, 0, 0, 1] needed")
        rotation = matrix[:3, :3]
        deviation = float(np.abs(rotation @ rotation.T - np.eye(3)).max())
        determinant = float(np.linalg.det(rotation))
        if deviation > ORTHONORMAL_TOLERANCE or determinant < 0:
            raise InvalidTransformError(
                f"rotation is off orthonormal by {deviation:.2g} with determinant {determinant:.6f}; "
                f"{ORTHONORMAL_TOLERANCE:g} and +1 needed"
            )
        matrix[3] = [0.0, 0.0, 0.0, 1.0]
        matrix.flags.writeable = False
        object.__setattr__(self, "matrix", matrix)

    @classmethod
    def identity(cls) -> RigidTransform:
        """Return the transform that moves nothing."""
        return cls(np.eye(4))

    @classmethod
    def from_matrix(cls, matrix: NDArray[np.float64]) -> RigidTransform:
        """Return the rigid transform nearest to a (4, 4) matrix that is rigid but for rounding.

        The rotation is projected by singular value decomposition; what is more than rounding (1e-3) is refused.
        """
        matrix = np.array(matrix, dtype=np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
            raise InvalidTransformError(f"matrix of shape {matrix.shape}, a finite (4, 4) one needed")
        left, scales, right = np.linalg.svd(matrix[:3, :3])
        if np.abs(scales - 1).max() > 1e-3 or np.linalg.det(left @ right) < 0:
            raise InvalidTransformError(f"scales {np.round(scales, 4).tolist()} or a mirror image, a rotation needed")
        matrix[:3, :3] = left @ right
        return cls(matrix)

    @classmethod
    def from_parameters(
        cls, angles_rad: NDArray[np.float64], shift_mm: NDArray[np.float64], centre_mm: NDArray[np.float64]
    ) -> RigidTransform:
        """Return the rotation about x, then y, then z through `centre_mm`, followed by a shift.

        Parameters
        ----------
        angles_rad, shift_mm, centre_mm : (3,) float64
            In the order x, y, z of LPS; right-handed angles.
        """
        return cls.about(centre_mm, rotation_about(angles_rad), shift_mm)

    @classmethod
    def about(
        cls, centre_mm: NDArray[np.float64], rotation: NDArray[np.float64], shift_mm: NDArray[np.float64]
    ) -> RigidTransform:
        """Return a (3, 3) rotation about `centre_mm`, followed by a shift; both (3,) float64, LPS mm."""
        matrix = np.eye(4)
        matrix[:3, :3] = rotation
        matrix[:3, 3] = centre_mm + shift_mm - rotation @ centre_mm
        return cls(matrix)

    def inverse(self) -> RigidTransform:
        """Return `b_from_a` for this `a_from_b`."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.rotation.T
        matrix[:3, 3] = -self.rotation.T @ self.translation_mm
        return RigidTransform(matrix)

    def __matmul__(self, other: RigidTransform) -> RigidTransform:
        return RigidTransform.from_matrix(self.matrix @ other.matrix)

    def apply(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Carry (n, 3) points in LPS mm over; returns (n, 3) float64."""
        return np.asarray(points, dtype=np.float64) @ self.rotation.T + self.translation_mm

    @property
    def rotation(self) -> NDArray[np.float64]:
        """The (3, 3) rotation."""
        return self.matrix[:3, :3]

    @property
    def translation_mm(self) -> NDArray[np.float64]:
        """The (3,) translation: where the origin goes, mm."""
        return self.matrix[:3, 3]

    @property
    def angle_deg(self) -> float:
        """The angle turned about the rotation's own axis, 0 to 180 degrees."""
        twice_sine = np.linalg.norm(
            [
                self.rotation[2, 1] - self.rotation[1, 2],
                self.rotation[0, 2] - self.rotation[2, 0],
                self.rotation[1, 0] - self.rotation[0, 1],
            ]
        )
        return math.degrees(math.atan2(float(twice_sine), float(np.trace(self.rotation)) - 1.0))


def rotation_about(angles_rad: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (3, 3) rotation about x, then y, then z by right-handed angles in radians."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles_rad), np.sin(angles_rad)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return np.asarray(about_z @ about_y @ about_x, dtype=np.float64)


def fit_rigid(
    moving: NDArray[np.float64], fixed: NDArray[np.float64], weights: NDArray[np.float64] | None = None
) -> RigidTransform:
    """Find the rigid transform that best lays `moving` on `fixed`.

    Parameters
    ----------
    moving, fixed : (n, 3) float64, LPS mm
        Paired points; row i of one belongs to row i of the other. n >= 3, not all on one line.
    weights : (n,) float64, optional
        Not negative; a point of weight 0 counts as absent.

    Returns
    -------
    fixed_from_moving : RigidTransform
        Minimises the weighted sum of squared distances in mm; never a mirror image.

    Raises
    ------
    TooFewPointsError
        If fewer than three points carry weight, or all of them lie on one line.

    Sources
    -------
    Kabsch 1976, doi:10.1107/S0567739476001873; the sign of the determinant: Umeyama 1991, doi:10.1109/34.88573.
    """
    moving, fixed = np.asarray(moving, dtype=np.float64), np.asarray(fixed, dtype=np.float64)
    weights = np.ones(len(moving)) if weights is None else np.asarray(weights, dtype=np.float64)
    used = int(np.count_nonzero(weights > 0))
    if used < 3 or moving.shape != fixed.shape:
        raise TooFewPointsError(f"{used} weighted points in {moving.shape} and {fixed.shape}, 3 pairs needed")
    weights = weights / weights.sum()
    moving_mean, fixed_mean = weights @ moving, weights @ fixed
    covariance = (moving - moving_mean).T @ (weights[:, None] * (fixed - fixed_mean))
    left, scales, right = np.linalg.svd(covariance)
    if scales[1] <= COLLINEAR_RATIO * scales[0] or scales[0] == 0:
        raise TooFewPointsError(f"{used} points lie on one line, points that span a plane needed")
    sign = np.sign(np.linalg.det(right.T @ left.T))
    rotation = right.T @ np.diag([1.0, 1.0, sign]) @ left.T
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = fixed_mean - rotation @ moving_mean
    return RigidTransform.from_matrix(matrix)
