"""Which slices of the moving series an output slice was made of.

Flow: request > [contributions] > pet|fused
Never: pixels or headers; indices only.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from registration.transforms import RigidTransform
from registration.volume import Volume

Points = NDArray[np.float64]


def find_contributing(fixed: Volume, moving: Volume, fixed_from_moving: RigidTransform) -> list[range]:
    """Find, for each slice k of the fixed grid, the moving slices that its plane cuts or lies between.

    Parameters
    ----------
    fixed, moving : Volume
    fixed_from_moving : RigidTransform

    Returns
    -------
    list of range
        One per fixed k: moving slice indices, empty where the plane misses the moving volume.
    """
    moving_index_from_fixed_index = moving.index_from_mm @ fixed_from_moving.inverse().matrix @ fixed.affine
    rows, columns = fixed.shape[1] - 0.5, fixed.shape[2] - 0.5
    corners = np.array([[-0.5, -0.5], [-0.5, columns], [rows, columns], [rows, -0.5]])
    found = []
    for k in range(fixed.shape[0]):
        indices = np.column_stack([np.full(4, float(k)), corners, np.ones(4)])
        polygon = (indices @ moving_index_from_fixed_index.T)[:, :3]
        found.append(_slices_cut(polygon, moving.shape))
    return found


def middle_slice(contributing: list[range], count: int) -> int:
    """Return the moving slice in the middle of all that contributed, or of all `count` when none did."""
    slices = sorted({number for found in contributing for number in found}) or range(count)
    return slices[len(slices) // 2]


def _slices_cut(polygon: Points, shape: tuple[int, int, int]) -> range:
    for axis, size in enumerate(shape):
        polygon = _clip(polygon, axis, -0.5, 1.0)
        polygon = _clip(polygon, axis, size - 0.5, -1.0)
    if len(polygon) == 0:
        return range(0)
    low, high = float(polygon[:, 0].min()), float(polygon[:, 0].max())
    return range(max(0, math.floor(low)), min(shape[0] - 1, math.ceil(high)) + 1)


def _clip(polygon: Points, axis: int, limit: float, sign: float) -> Points:
    """Keep the part of a polygon where sign * coordinate >= sign * limit (Sutherland and Hodgman 1974)."""
    kept = []
    depths = sign * (polygon[:, axis] - limit) if len(polygon) else np.empty(0)
    for number, depth in enumerate(depths):
        before, depth_before = polygon[number - 1], depths[number - 1]
        if (depth >= 0) != (depth_before >= 0):
            kept.append(before + (polygon[number] - before) * (depth_before / (depth_before - depth)))
        if depth >= 0:
            kept.append(polygon[number])
    return np.array(kept)
