"""SIFT's descriptor, upright, in up to three planes at any voxel: 128 values a plane from dense maps.

Flow: preprocess > [gradients] > descriptors
Never: an orientation of its own; patient coordinates give the orientation.

Sources: Lowe 2004, doi:10.1023/B:VISI.0000029664.99615.94 (4 x 4 cells of 8 directions, clipping at 0.2);
Tola, Lepetit and Fua 2010, doi:10.1109/TPAMI.2009.77 (dense maps); Arandjelovic and Zisserman 2012,
doi:10.1109/CVPR.2012.6248018 (the square root).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from registration.preprocess import CUBE_SPACING_MM, blur

DIRECTIONS = 8
CELLS_MM = (-15.0, -5.0, 5.0, 15.0)
CELL_SIGMA_MM = 4.0
WINDOW_SIGMA_MM = 20.0
CLIP = 0.2
AXES = ((1, 2), (0, 2), (0, 1))  # of rows and columns in the axial, coronal and sagittal plane


def describe_gradients(
    array: NDArray[np.float32], index: NDArray[np.int64], planes: tuple[int, ...] = (0, 1, 2)
) -> NDArray[np.float32]:
    """Describe the surroundings of points by gradient directions.

    Parameters
    ----------
    array : (k, j, i) float32
        On the working grid; even numbers of voxels.
    index : (n, 3) int64
    planes : tuple of int
        0 axial, 1 coronal, 2 sagittal.

    Returns
    -------
    (n, 128 for each plane) float32
        RootSIFT of the planes, together of unit length (or zero where all is flat).
    """
    halved = halve(array)
    slopes = [np.asarray(np.gradient(halved, axis=axis), dtype=np.float32) for axis in range(3)]
    parts = [_describe_plane(slopes[AXES[p][0]], slopes[AXES[p][1]], AXES[p], index) for p in planes]
    return np.concatenate(parts, axis=1) * np.float32(1 / np.sqrt(len(planes)))


def _describe_plane(
    down: NDArray[np.float32], right: NDArray[np.float32], axes: tuple[int, int], index: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Describe points in one plane: (n, 128) RootSIFT of unit length."""
    maps = direction_maps(down, right)
    values = np.empty((len(index), len(CELLS_MM), len(CELLS_MM), DIRECTIONS), dtype=np.float32)
    for row, down_mm in enumerate(CELLS_MM):
        for column, right_mm in enumerate(CELLS_MM):
            place = index.astype(np.float32)
            place[:, axes[0]] += down_mm / CUBE_SPACING_MM
            place[:, axes[1]] += right_mm / CUBE_SPACING_MM
            weight = np.exp(-0.5 * (down_mm**2 + right_mm**2) / WINDOW_SIGMA_MM**2)
            values[:, row, column] = sample_maps(maps, (place - np.float32(0.5)) / np.float32(2)) * np.float32(weight)
    return root_sift(values.reshape(len(index), -1))


def halve(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Average eight voxels into one of twice their size: (k, j, i) to (k/2, j/2, i/2)."""
    halved = array[0::2] + array[1::2]
    halved = halved[:, 0::2] + halved[:, 1::2]
    return np.asarray((halved[..., 0::2] + halved[..., 1::2]) * np.float32(1 / 8))


def direction_maps(down: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return how strongly the slope points in each of eight directions, pooled over a cell: (k, j, i, 8)."""
    maps = np.empty((*down.shape, DIRECTIONS), dtype=np.float32)
    sigmas = np.full(3, CELL_SIGMA_MM / (2 * CUBE_SPACING_MM))
    for half in range(DIRECTIONS // 2):
        angle = 2 * np.pi * half / DIRECTIONS
        along = right * np.float32(np.cos(angle)) + down * np.float32(np.sin(angle))
        maps[..., half] = blur(np.maximum(along, 0), sigmas)
        maps[..., half + DIRECTIONS // 2] = blur(np.maximum(-along, 0), sigmas)
    return maps


def sample_maps(maps: NDArray[np.float32], place: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return trilinear values at (n, 3) places, the edge repeated outside: (n, channels) float32."""
    upper = np.array(maps.shape[:3], dtype=np.float32) - 1
    place = np.clip(place, 0, upper)
    floor = np.minimum(place.astype(np.int64), (upper - 1).astype(np.int64))
    t = (place - floor).astype(np.float32)
    total = np.zeros((len(place), maps.shape[3]), dtype=np.float32)
    for corner in range(8):
        offset = np.array([corner >> 2, (corner >> 1) & 1, corner & 1])
        weight = np.prod(np.where(offset == 1, t, 1 - t), axis=1)
        k, j, i = (floor + offset).T
        total += maps[k, j, i] * weight[:, None]
    return total


def root_sift(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Normalise (n, 128) histograms: unit length, clipped at 0.2, then the square root of the shares."""
    length = np.linalg.norm(values, axis=1, keepdims=True)
    clipped = np.minimum(values / np.maximum(length, 1e-12), CLIP)
    shares = clipped / np.maximum(clipped.sum(axis=1, keepdims=True), 1e-12)
    return np.asarray(np.sqrt(shares), dtype=np.float32)
