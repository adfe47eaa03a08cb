"""Normalised mutual information between two volumes under a transform, with an overlap guard.

Flow: refinement | confidence > [similarity]
Never: a search; this is one number for one transform.

Sources: Studholme, Hill and Hawkes 1999, doi:10.1016/S0031-3203(98)00091-0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from registration.trilinear import TOP, Packed, pack, sample
from registration.volume import Volume

BINS = 32  # unless a comparison is given others
BLOCK = 40_000  # points at once, so that what is computed for each stays in the processor's cache
LEAST_OVERLAP = 0.25  # of the fixed points; below it mutual information of a corner of the head looks fine
NO_SOLUTION = 0.0  # lower than any normalised mutual information, which is at least 1


@dataclass(frozen=True, eq=False)
class Comparison:
    """The fixed volume's sampled points and the moving volume's voxels, ready to be compared again and again.

    Attributes
    ----------
    points_mm : (3, n) float32, fixed LPS mm
        All x, all y, all z.
    fixed : (n,) float32
        Each point's fixed intensity, 0 to bins - 1.
    moving : Packed
    bins : int
        Of either volume's intensity.
    """

    points_mm: NDArray[np.float32]
    fixed: NDArray[np.float32]
    moving: Packed
    bins: int


def make_comparison(
    points_mm: NDArray[np.float64],
    fixed_values: NDArray[np.float32],
    moving: Volume,
    bright: float,
    bins: int = BINS,
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
    bins : int
    """
    points = np.ascontiguousarray(points_mm.T, dtype=np.float32)
    fixed = np.asarray(np.clip(fixed_values, 0, 1) * (bins - 1), dtype=np.float32)
    return Comparison(points, fixed, pack(moving, bright), bins)


def thin_out(comparison: Comparison, points: int) -> Comparison:
    """Return a comparison at the first of the points alone: coarser, and sooner done."""
    return replace(
        comparison, points_mm=np.ascontiguousarray(comparison.points_mm[:, :points]), fixed=comparison.fixed[:points]
    )


def measure(comparison: Comparison, moving_from_fixed: NDArray[np.float64]) -> float:
    """Return the normalised mutual information under a (4, 4) matrix, or NO_SOLUTION if too little overlaps."""
    counts, overlap = joint_histogram(comparison, moving_from_fixed)
    if overlap < LEAST_OVERLAP:
        return NO_SOLUTION
    return normalised_mutual_information(counts)


def joint_histogram(
    comparison: Comparison, moving_from_fixed: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Return the (bins, bins) joint histogram (fixed, moving) and the share of fixed points inside the moving view.

    Each point counts in the four bins round its two intensities, by how near it is to each.
    """
    matrix = (comparison.moving.index_from_mm @ moving_from_fixed)[:3].astype(np.float32)
    bins, points = comparison.bins, len(comparison.fixed)
    side = bins + 1  # the last bin's next takes a share of 0
    counts, inside = np.zeros(side * side), 0
    for start in range(0, points, BLOCK):
        block = slice(start, start + BLOCK)
        where, values = sample(comparison.moving, matrix[:, :3] @ comparison.points_mm[:, block] + matrix[:, 3:])
        inside += len(where)
        moving, fixed = values * np.float32((bins - 1) / TOP), comparison.fixed[block].take(where)
        row, column = fixed.astype(np.int64), moving.astype(np.int64)
        down, right = fixed - row, moving - column
        cell, both = row * side + column, down * right
        for step, share in ((0, 1 - down - right + both), (1, right - both), (side, down - both), (side + 1, both)):
            counts[step:] += np.bincount(cell, share, len(counts))[: len(counts) - step]
    return counts.reshape(side, side)[:bins, :bins], inside / points


def normalised_mutual_information(counts: NDArray[np.float64]) -> float:
    """Return (H(fixed) + H(moving)) / H(fixed, moving) of a joint histogram: 1 for unrelated, 2 for equal."""
    total = float(counts.sum())
    joint = _entropy(counts.ravel() / total)
    if joint == 0.0:
        return 1.0
    return (_entropy(counts.sum(axis=1) / total) + _entropy(counts.sum(axis=0) / total)) / joint


def _entropy(shares: NDArray[np.float64]) -> float:
    """Return the entropy in nats."""
    positive = shares[shares > 0]
    return -float(positive @ np.log(positive))
