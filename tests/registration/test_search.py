from __future__ import annotations

import numpy as np

from registration.search import icosahedral_rotations


def test_sixty_rotations_leave_no_rotation_further_than_45_degrees() -> None:
    rotations = icosahedral_rotations()
    assert rotations.shape == (60, 3, 3)
    np.testing.assert_allclose(
        rotations @ rotations.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (60, 3, 3)), atol=1e-9
    )
    np.testing.assert_allclose(np.linalg.det(rotations), 1)

    quaternions = np.random.default_rng(0).standard_normal((4000, 4))
    w, x, y, z = (quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)).T
    drawn = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    ).transpose(2, 0, 1)
    traces = np.einsum("nij,mij->nm", drawn, rotations)
    nearest_deg = np.degrees(np.arccos(np.clip((traces.max(axis=1) - 1) / 2, -1, 1)))
    assert 40 < nearest_deg.max() < 44.6
