"""Step 5 of the method: which candidate in the moving volume belongs to which key point of the fixed one.

Flow: descriptors > [matching] > estimation
Never: a transform; a match is two points and a weight.

Sources: Lowe 2004, section 7.1, doi:10.1023/B:VISI.0000029664.99615.94 (the ratio; here the runner-up must lie
elsewhere, since neighbours of the right place look alike).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SOFT_WIDTH = 0.03  # of similarity: candidates this much worse than the best count 1/e


@dataclass(frozen=True)
class Rule:
    """When two points match.

    Attributes
    ----------
    ratio : float
        Largest distance of the best candidate's descriptor over the runner-up's.
    apart_mm : float
        The runner-up is the best candidate further than this from the best one: nearer ones are the same place.
    mutual_mm : float
        How far the candidate's own best key point may lie from the key point.
    soft_mm : float
        The place of a match is the centroid of the candidates this near the best one, weighted by similarity.
    """

    ratio: float
    apart_mm: float
    mutual_mm: float
    soft_mm: float


@dataclass(frozen=True, eq=False)
class Matches:
    """Pairs of points, LPS mm.

    Attributes
    ----------
    fixed, moving : (n, 3) float64
        Row i of one belongs to row i of the other, as far as descriptors can tell.
    weights : (n,) float64
        Above 0; larger where the runner-up is further behind.
    fixed_index : (n,) int64
        Which key point each fixed point is.
    """

    fixed: NDArray[np.float64]
    moving: NDArray[np.float64]
    weights: NDArray[np.float64]
    fixed_index: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.fixed)


def no_matches() -> Matches:
    """Return matches of length 0."""
    return Matches(np.empty((0, 3)), np.empty((0, 3)), np.empty(0), np.empty(0, dtype=np.int64))


def match(
    fixed: tuple[NDArray[np.float64], NDArray[np.float32]],
    moving: tuple[NDArray[np.float64], NDArray[np.float32]],
    rule: Rule,
    *,
    radius_mm: float = np.inf,
) -> Matches:
    """Match points by their descriptors.

    Parameters
    ----------
    fixed, moving : (points (n, 3) float64 LPS mm, descriptors (n, d) float32 of unit length)
        Both in one frame: the moving points under the estimate so far. Of the moving ones there is at least one.
    rule : Rule
    radius_mm : float
        Candidates further than this from the fixed point are not looked at.

    Returns
    -------
    Matches
        Those that pass the ratio and whose candidate's own best key point is near; their moving places are centroids.
    """
    fixed_mm, moving_mm = fixed[0], moving[0]
    if len(fixed_mm) == 0:
        return no_matches()
    similarity = fixed[1] @ moving[1].T
    if np.isfinite(radius_mm):
        similarity = np.where(distances(fixed_mm, moving_mm) <= radius_mm, similarity, np.float32(-1))
    best = similarity.argmax(axis=1)
    rows = np.arange(len(best))
    top = similarity[rows, best]
    between = distances(moving_mm[best], moving_mm)
    second = np.where(between > rule.apart_mm, similarity, np.float32(-1)).max(axis=1)
    ratio = _distance(top) / np.maximum(_distance(second), 1e-6)
    returned = similarity.argmax(axis=0)[best]
    is_mutual = np.linalg.norm(fixed_mm[returned] - fixed_mm, axis=1) <= rule.mutual_mm
    keep = np.flatnonzero((top > 0) & (ratio <= rule.ratio) & is_mutual)
    soft = np.where(between[keep] <= rule.soft_mm, np.exp((similarity[keep] - top[keep, None]) / SOFT_WIDTH), 0.0)
    places = (soft / soft.sum(axis=1, keepdims=True)) @ moving_mm
    return Matches(fixed_mm[keep], places, 1.0 - ratio[keep].astype(np.float64) + 0.02, keep)


def distances(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distance of each of (n, 3) points to each of (m, 3): (n, m)."""
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2 * a @ b.T
    return np.asarray(np.sqrt(np.maximum(squares, 0)))


def _distance(similarity: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the distance of two unit vectors with this product."""
    return np.asarray(np.sqrt(np.maximum(2 - 2 * similarity, 0)), dtype=np.float32)
