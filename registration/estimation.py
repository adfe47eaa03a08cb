"""Step 6 of the method: the rigid transform that most matches agree on.

Flow: matching > [estimation] > pipeline
Never: scale or shear; a draw that the generator given does not fix.

Sources: Fischler and Bolles 1981, doi:10.1145/358669.358692 (RANSAC); Torr and Zisserman 2000,
doi:10.1006/cviu.1999.0832 (MSAC's cost); Beaton and Tukey 1974, doi:10.1080/00401706.1974.10489171 (weights).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from registration.errors import TooFewPointsError
from registration.matching import Matches
from registration.transforms import RigidTransform, fit_rigid

TRIPLES = 3000
SHORTEST_SIDE_MM = 20.0  # a smaller triangle says too little about the rotation
FEWEST_MATCHES = 6
REWEIGHTINGS = 10


@dataclass(frozen=True, eq=False)
class Estimate:
    """A transform, and how many matches stand behind it.

    Attributes
    ----------
    fixed_from_moving : RigidTransform
    inliers : int
    """

    fixed_from_moving: RigidTransform
    inliers: int


def estimate(matches: Matches, tolerance_mm: float, rng: np.random.Generator) -> Estimate:
    """Estimate the rigid transform from matches of which many are wrong.

    Raises
    ------
    TooFewPointsError
        If there are fewer than 6 matches, or no three of them fit together.
    """
    if len(matches) < FEWEST_MATCHES:
        raise TooFewPointsError(f"{len(matches)} matches, {FEWEST_MATCHES} needed")
    rotations, shifts = fit_triples(matches, tolerance_mm, rng)
    if len(rotations) == 0:
        raise TooFewPointsError(f"no three of {len(matches)} matches have sides equal within {tolerance_mm:g} mm")
    moved = np.einsum("tab,nb->tna", rotations, matches.moving) + shifts[:, None, :]
    squares = ((moved - matches.fixed) ** 2).sum(axis=2)
    cost = np.minimum(squares, tolerance_mm**2) @ matches.weights
    best = int(cost.argmin())
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotations[best], shifts[best]
    return fit(matches, RigidTransform.from_matrix(matrix), tolerance_mm)


def fit_triples(
    matches: Matches, tolerance_mm: float, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fit a rotation (t, 3, 3) and a shift (t, 3) to random triples whose triangles agree in their sides."""
    triples = rng.integers(0, len(matches), (TRIPLES, 3))
    sides = [(0, 1), (1, 2), (2, 0)]
    fixed, moving = matches.fixed[triples], matches.moving[triples]
    fixed_mm = np.stack([np.linalg.norm(fixed[:, a] - fixed[:, b], axis=1) for a, b in sides], axis=1)
    moving_mm = np.stack([np.linalg.norm(moving[:, a] - moving[:, b], axis=1) for a, b in sides], axis=1)
    agree = (np.abs(fixed_mm - moving_mm) < tolerance_mm).all(axis=1)
    agree &= (np.minimum(fixed_mm, moving_mm) > SHORTEST_SIDE_MM).all(axis=1)
    fixed, moving = fixed[agree], moving[agree]
    fixed_mean, moving_mean = fixed.mean(axis=1), moving.mean(axis=1)
    covariance = np.einsum("tna,tnb->tab", moving - moving_mean[:, None], fixed - fixed_mean[:, None])
    left, _, right = np.linalg.svd(covariance)
    right = np.swapaxes(right, 1, 2)
    right[:, :, 2] *= np.sign(np.linalg.det(right @ np.swapaxes(left, 1, 2)))[:, None]
    rotations = right @ np.swapaxes(left, 1, 2)
    return rotations, fixed_mean - np.einsum("tab,tb->ta", rotations, moving_mean)


def fit(matches: Matches, start: RigidTransform, tolerance_mm: float) -> Estimate:
    """Fit again and again with Tukey's weights, which fall to 0 at twice the tolerance."""
    current = start
    for _ in range(REWEIGHTINGS):
        apart = np.linalg.norm(current.apply(matches.moving) - matches.fixed, axis=1)
        tukey = np.maximum(1 - (apart / (2 * tolerance_mm)) ** 2, 0) ** 2 * matches.weights
        if np.count_nonzero(tukey) < FEWEST_MATCHES:
            raise TooFewPointsError(f"{np.count_nonzero(tukey)} matches agree, {FEWEST_MATCHES} needed")
        current = fit_rigid(matches.moving, matches.fixed, tukey)
    apart = np.linalg.norm(current.apply(matches.moving) - matches.fixed, axis=1)
    return Estimate(current, int((apart <= tolerance_mm).sum()))
