"""Normalised mutual information between two volumes under a transform, with an overlap guard.

Flow: refinement | confidence > [similarity]
Never: a search; this is one number for one transform.

Sources: Studholme, Hill and Hawkes 1999, doi:10.1016/S0031-3203(98)00091-0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from registration.volume import Volume

BINS = 32
LEAST_OVERLAP = 0.25  # of the fixed points; below it mutual information of a corner of the head looks fine
NO_SOLUTION = 0.0  # lower than any normalised mutual information, which is at least 1


@dataclass(frozen=True, eq=False)
class Comparison:
    """The fixed volume's sampled points and the moving volume's voxels, ready to be compared again and again.

    Attributes
    ----------
    points_mm : (n, 3) float64, fixed LPS mm
    rows : (n,) int64
        Each point's fixed bin times BINS.
    corners : (voxels,) uint64
        Eight neighbouring moving intensities of 0 to 255 in one item.
    shape : (3,) int
        The moving array's shape, k, j, i.
    index_from_mm : (4, 4) float64
        Moving LPS mm to moving index.
    """

    points_mm: NDArray[np.float64]
    rows: NDArray[np.int64]
    corners: NDArray[np.uint64]
    shape: tuple[int, int, int]
    index_from_mm: NDArray[np.float64]


def make_comparison(
    points_mm: NDArray[np.float64], fixed_values: NDArray[np.float32], moving: Volume, bright: float
) -> Comparison:
    """Make a comparison.

    Parameters
    ----------
    points_mm : (n, 3) float64, fixed LPS mm
    fixed_values : (n,) float32, 0 to 1
        Intensity of the fixed volume at each point.
    moving : Volume
    bright : float
        The moving intensity that becomes the last bin.
    """
    rows = np.minimum(fixed_values * BINS, BINS - 1).astype(np.int64) * BINS
    quantised = np.clip(moving.array * (255.0 / bright), 0, 255).astype(np.uint8)
    padded = np.pad(quantised, ((0, 1), (0, 1), (0, 1)), mode="edge")
    corners = np.empty((*moving.shape, 8), dtype=np.uint8)
    k, j, i = moving.shape
    for corner in range(8):
        dk, dj, di = corner >> 2, (corner >> 1) & 1, corner & 1
        corners[..., corner] = padded[dk : dk + k, dj : dj + j, di : di + i]
    packed = corners.reshape(-1).view(np.uint64)
    return Comparison(points_mm, rows, packed, moving.shape, moving.index_from_mm)


def measure(comparison: Comparison, moving_from_fixed: NDArray[np.float64]) -> float:
    """Return the normalised mutual information under a (4, 4) matrix, or NO_SOLUTION if too little overlaps."""
    counts, overlap = joint_histogram(comparison, moving_from_fixed)
    if overlap < LEAST_OVERLAP:
        return NO_SOLUTION
    return normalised_mutual_information(counts)


def joint_histogram(
    comparison: Comparison, moving_from_fixed: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Return the (BINS, BINS) joint histogram (fixed, moving) and the share of fixed points inside the moving view."""
    matrix = (comparison.index_from_mm @ moving_from_fixed)[:3]
    index = (comparison.points_mm @ matrix[:, :3].T + matrix[:, 3]).astype(np.float32)
    upper = np.array(comparison.shape, dtype=np.float32) - 0.5
    inside = ((index > -0.5) & (index < upper)).all(axis=1)
    overlap = float(inside.mean())
    where = np.flatnonzero(inside)
    values = _interpolate(comparison, np.maximum(index[where], 0)) * np.float32((BINS - 1) / 255.0)
    lower = values.astype(np.int64)
    share = values - lower
    cells = comparison.rows[where] + lower
    counts = np.bincount(cells, weights=1 - share, minlength=BINS * BINS + 1).astype(np.float64)
    counts[1:] += np.bincount(cells, weights=share, minlength=BINS * BINS + 1)[:-1]
    return counts[: BINS * BINS].reshape(BINS, BINS), overlap


def _interpolate(comparison: Comparison, index: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the trilinear value, 0 to 255, at (n, 3) moving indices inside the volume."""
    floor = index.astype(np.int32)
    t = index - floor
    _, j, i = comparison.shape
    flat = (floor[:, 0] * np.int64(j) + floor[:, 1]) * i + floor[:, 2]
    taps = comparison.corners.take(flat, mode="clip").view(np.uint8).reshape(-1, 2, 2, 2).astype(np.float32)
    along_i = taps[..., 0] + t[:, 2, None, None] * (taps[..., 1] - taps[..., 0])
    along_j = along_i[..., 0] + t[:, 1, None] * (along_i[..., 1] - along_i[..., 0])
    return np.asarray(along_j[:, 0] + t[:, 0] * (along_j[:, 1] - along_j[:, 0]), dtype=np.float32)


def normalised_mutual_information(counts: NDArray[np.float64]) -> float:
    """Return (H(fixed) + H(moving)) / H(fixed, moving) of a joint histogram: 1 for unrelated, 2 for equal."""
    total = float(counts.sum())
    joint = _entropy(counts.reshape(-1) / total)
    if joint == 0.0:
        return 1.0
    return (_entropy(counts.sum(axis=1) / total) + _entropy(counts.sum(axis=0) / total)) / joint


def _entropy(shares: NDArray[np.float64]) -> float:
    """Return the entropy in nats."""
    positive = shares[shares > 0]
    return -float(positive @ np.log(positive))
