"""Trilinear interpolation of a volume in 8 bits: fast enough to be asked some hundred times in a second.

Flow: preprocess | similarity > [trilinear]
Never: a value of a result; that comes from cubic splines, in `resample`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from registration.volume import Volume

TOP = 255.0  # what the ceiling becomes


@dataclass(frozen=True, eq=False)
class Packed:
    """A volume's voxels, each with its neighbours.

    Attributes
    ----------
    corners : (voxels,) uint64
        Eight neighbouring intensities of 0 to 255 in one item, in C order of k, j, i.
    shape : (3,) int
        The volume's, k, j, i.
    index_from_mm : (4, 4) float64
        LPS mm to its index.
    """

    corners: NDArray[np.uint64]
    shape: tuple[int, int, int]
    index_from_mm: NDArray[np.float64]


def pack(volume: Volume, ceiling: float) -> Packed:
    """Pack a volume: 0 and less becomes 0, the ceiling and more 255."""
    quantised = np.clip(volume.array * np.float32(TOP / ceiling) + np.float32(0.5), 0, TOP).astype(np.uint8)
    padded = np.pad(quantised, ((0, 1), (0, 1), (0, 1)), mode="edge")
    corners = np.empty((*volume.shape, 8), dtype=np.uint8)
    k, j, i = volume.shape
    for corner in range(8):
        dk, dj, di = corner >> 2, (corner >> 1) & 1, corner & 1
        corners[..., corner] = padded[dk : dk + k, dj : dj + j, di : di + i]
    return Packed(corners.reshape(-1).view(np.uint64), volume.shape, volume.index_from_mm)


def sample(packed: Packed, index: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Sample at (3, n) indices k, j, i.

    Returns
    -------
    where : (m,) int64
        Which of them lie in the volume's field of view, which ends half a voxel beyond the outermost centres.
    values : (m,) float32, 0 to 255
    """
    upper = np.array(packed.shape, dtype=np.float32)[:, None] - np.float32(0.5)
    where = np.flatnonzero(((index > -0.5) & (index < upper)).all(axis=0))
    return where, _interpolate(packed, np.maximum(index.take(where, axis=1), 0))


def _interpolate(packed: Packed, index: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the trilinear value, 0 to 255, at (3, n) indices inside the volume, none below 0."""
    floor = index.astype(np.int32)
    tk, tj, ti = index - floor
    _, j, i = packed.shape
    flat = (floor[0] * np.int64(j) + floor[1]) * i + floor[2]
    taps = packed.corners.take(flat, mode="clip").view(np.uint8).reshape(-1, 8)
    values = np.ascontiguousarray(taps.T).astype(np.float32)  # a corner a row: each step runs along whole rows
    along_i = values[0::2] + ti * (values[1::2] - values[0::2])
    along_j = along_i[0::2] + tj * (along_i[1::2] - along_i[0::2])
    return np.asarray(along_j[0] + tk * (along_j[1] - along_j[0]), dtype=np.float32)
