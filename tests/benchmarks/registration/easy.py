"""A pair that any method can register, on grids that a wrong convention cannot survive.

Flow: [easy] > worker | tests
Never: a resampled image: both are worked out from the same formula at the places of their voxels.

The fixed grid is sagittal and the moving one axial, both oblique, with unequal spacings and far from the origin: axes
in a wrong order, a transposed direction, a sign of LPS or an inverse left out each cost centimetres.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.train.cases import Case
from registration.transforms import RigidTransform
from registration.volume import Volume

RIGHT_MM = 3.0
EDGE_MM = 2.0  # over which one part fades into the next
BRAIN_POINTS, BRAIN_RADIUS_MM = 300, 50.0
# Middle and radii in head coordinates, LPS mm; level in the fixed and in the moving volume.
PARTS = (
    ((0.0, 0.0, 0.0), (75.0, 95.0, 85.0), 0.45, 0.15),
    ((0.0, 2.0, 2.0), (66.0, 84.0, 72.0), 0.70, 1.00),
    ((-4.0, 4.0, 8.0), (50.0, 66.0, 52.0), 1.00, 0.30),
    ((12.0, -10.0, 14.0), (9.0, 30.0, 12.0), 0.20, 0.05),
    ((-14.0, -6.0, 12.0), (7.0, 24.0, 10.0), 0.20, 0.05),
    ((24.0, 30.0, -20.0), (18.0, 14.0, 12.0), 0.70, 1.10),
    ((-20.0, -38.0, -10.0), (12.0, 16.0, 20.0), 0.70, 0.90),
    ((6.0, 52.0, -44.0), (40.0, 24.0, 18.0), 0.75, 0.90),
)
FIXED_FROM_HEAD = RigidTransform.from_parameters(
    np.radians([4.0, -3.0, 5.0]), np.array([35.0, -120.0, 260.0]), np.zeros(3)
)
MOVING_FROM_HEAD = RigidTransform.from_parameters(
    np.radians([-2.0, 2.0, -3.0]), np.array([-80.0, 45.0, -410.0]), np.zeros(3)
)
# Columns: what one step along k, j and i is in the frame of the scanner's table, mm.
SAGITTAL = np.array([[2.5, 0.0, 0.0], [0.0, 0.0, 3.0], [0.0, -3.5, 0.0]])
AXIAL = np.array([[0.0, 0.0, 3.0], [0.0, 3.0, 0.0], [4.0, 0.0, 0.0]])
TABLE_TILT = RigidTransform.from_parameters(np.radians([4.0, 3.0, -8.0]), np.zeros(3), np.zeros(3))


def make_easy_case() -> Case:
    """Make the pair: 10 degrees and most of a metre apart."""
    fixed = _image(SAGITTAL, (80, 66, 76), FIXED_FROM_HEAD, level=2)
    moving = _image(AXIAL, (54, 76, 76), MOVING_FROM_HEAD, level=3)
    rng = np.random.default_rng(0)
    brain_mm = FIXED_FROM_HEAD.apply(rng.uniform(-1, 1, (BRAIN_POINTS, 3)) * BRAIN_RADIUS_MM)
    return Case(fixed, moving, FIXED_FROM_HEAD @ MOVING_FROM_HEAD.inverse(), brain_mm)


def _image(
    steps: NDArray[np.float64], shape: tuple[int, int, int], frame_from_head: RigidTransform, level: int
) -> Volume:
    """Work out one volume whose grid has the head in its middle."""
    affine = np.eye(4)
    affine[:3, :3] = TABLE_TILT.rotation @ steps
    affine[:3, 3] = frame_from_head.translation_mm - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    index = np.moveaxis(np.indices(shape, dtype=np.float64), 0, -1)
    head_mm = frame_from_head.inverse().apply((index @ affine[:3, :3].T + affine[:3, 3]).reshape(-1, 3))
    array = np.zeros(len(head_mm))
    for part in PARTS:
        radii = np.array(part[1])
        inside_mm = (1 - np.linalg.norm((head_mm - part[0]) / radii, axis=1)) * radii.min()
        share = 1 / (1 + np.exp(-np.clip(inside_mm / (EDGE_MM / 2), -30, 30)))
        array += share * (part[level] - array)
    return Volume((array * 1000).reshape(shape).astype(np.float32), affine)
