"""What the steps of one registration share: the fixed side's features, what similarity is measured on, and poses.

Flow: preprocess | keypoints | descriptors > [problem] > search | pipeline
Never: a change after it is posed.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from registration.descriptors import Network, describe
from registration.errors import ModelError
from registration.keypoints import find_fixed_points
from registration.preprocess import (
    CUBE_SPACING_MM,
    CUBE_VOXELS,
    Cube,
    Prepared,
    blur,
    find_view,
    make_cube,
    make_cube_grid,
    normalise,
    smooth,
)
from registration.profiles import Profile
from registration.resample import Grid, thin_slices
from registration.similarity import BINS, Comparison, make_comparison
from registration.transforms import RigidTransform
from registration.volume import Volume

FIXED_POINTS = 300
BRAIN_RADIUS_MM = 70.0
BRAIN_POINTS = 500
COARSE_POINTS, FINE_POINTS, FINEST_POINTS = 6_000, 20_000, 250_000
FINEST_BINS = 48  # more are filled by more points
COARSE_FWHM_MM = 8.0
FINEST_FIXED_FWHM_MM = 2.5
FINEST_SLICES_MM = 2.5  # apart at most: linear interpolation between a PET's slices blurs by where a point falls
NEAR_HEAD_MM = 8.0
LAST_BIN = 1.25  # times the bright level


@dataclass(frozen=True, eq=False)
class Problem:
    """What every step needs and none changes.

    Attributes
    ----------
    fixed, moving : Prepared
    grid : Grid
        The working grid round the fixed head.
    centre_mm : (3,) float64, fixed LPS mm
    fixed_cube : Cube
        The fixed volume on the working grid.
    fixed_index : (n, 3) int64
        Its key points, voxels of the working grid.
    fixed_descriptors : (n, d) float32
    coarse, fine, finest : Comparison
        For the search, the polish, and its last step.
    brain_mm : (m, 3) float64, fixed LPS mm
        Points within 70 mm of the middle, by which two poses are compared.
    network : Network
    profile : Profile
    seed : int
    """

    fixed: Prepared
    moving: Prepared
    grid: Grid
    centre_mm: NDArray[np.float64]
    fixed_cube: Cube
    fixed_index: NDArray[np.int64]
    fixed_descriptors: NDArray[np.float32]
    coarse: Comparison
    fine: Comparison
    finest: Comparison
    brain_mm: NDArray[np.float64]
    network: Network
    profile: Profile
    seed: int

    @property
    def fixed_points(self) -> NDArray[np.float64]:
        """The fixed key points, (n, 3) fixed LPS mm."""
        return to_mm(self.fixed_index, self.grid)

    @cached_property
    def fixed_view(self) -> NDArray[np.bool_]:
        """Which voxels of the working grid the fixed volume shows, (k, j, i)."""
        return find_view(self.fixed.volume, self.grid, RigidTransform.identity())

    def displacement_mm(self, a: RigidTransform, b: RigidTransform) -> float:
        """Return how far apart two transforms lay the same point of the brain: the mean over the brain, mm."""
        a_from_b = a @ b.inverse()
        return float(np.linalg.norm(a_from_b.apply(self.brain_mm) - self.brain_mm, axis=1).mean())


@dataclass(frozen=True, eq=False)
class Pose:
    """A candidate answer: where it lays the moving volume, and how alike the two then are."""

    fixed_from_moving: RigidTransform
    similarity: float


def pose_problem(prepared: tuple[Prepared, Prepared], network: Network, profile: Profile, seed: int) -> Problem:
    """Do steps 1 to 4 on the fixed side, and draw the voxels similarity is measured on.

    Raises
    ------
    ModelError
        If the network is not the profile's.
    """
    if network.name != profile.network:
        raise ModelError(f"network {network.name} given, the profile {profile.name} needs {profile.network}")
    fixed_prepared, moving = prepared
    grid = make_cube_grid(fixed_prepared.centre_mm)
    with ThreadPoolExecutor(1) as beside:
        drawing = beside.submit(make_comparisons, *prepared, seed)
        cube = make_cube(fixed_prepared, grid, RigidTransform.identity())
        index = find_fixed_points(cube, FIXED_POINTS, profile)
        descriptors = describe(cube, index, network, profile, is_moving=False)
        sampled_mm, coarse, fine, finest = drawing.result()
    near = np.linalg.norm(sampled_mm - fixed_prepared.centre_mm, axis=1) < BRAIN_RADIUS_MM
    return Problem(
        fixed=fixed_prepared,
        moving=moving,
        grid=grid,
        centre_mm=fixed_prepared.centre_mm,
        fixed_cube=cube,
        fixed_index=index,
        fixed_descriptors=descriptors,
        coarse=coarse,
        fine=fine,
        finest=finest,
        brain_mm=sampled_mm[near][:BRAIN_POINTS],
        network=network,
        profile=profile,
        seed=seed,
    )


def make_comparisons(
    fixed: Prepared, moving: Prepared, seed: int
) -> tuple[NDArray[np.float64], Comparison, Comparison, Comparison]:
    """Draw voxels of the fixed head; return them, (n, 3) LPS mm, and the coarse, fine and finest comparison at them."""
    index = choose_voxels(fixed, np.random.default_rng(seed))
    sampled_mm = to_mm(index, fixed.volume)
    sharp = smooth(fixed.shrunk, FINEST_FIXED_FWHM_MM)
    values, sharp_values = (normalise(volume.array[tuple(index.T)], fixed.bright) for volume in (fixed.volume, sharp))
    ceiling = moving.bright * LAST_BIN
    coarse, fine, finest = (
        make_comparison(sampled_mm[:points], fixed_values[:points], volume, ceiling, bins)
        for points, fixed_values, volume, bins in (
            (COARSE_POINTS, values, smooth(moving.volume, COARSE_FWHM_MM), BINS),
            (FINE_POINTS, values, moving.volume, BINS),
            (FINEST_POINTS, sharp_values, thin_slices(moving.shrunk, FINEST_SLICES_MM), FINEST_BINS),
        )
    )
    return sampled_mm, coarse, fine, finest


def choose_voxels(fixed: Prepared, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw voxels of the head and a rim of air round it, no further off than the working grid: (n, 3) int64.

    One is drawn of each of equally many that follow one another, which tells more than as many drawn anywhere; their
    order is random, so that the first of them are spread as well.
    """
    volume = fixed.volume
    sigmas = NEAR_HEAD_MM / 2 / volume.spacing_mm
    near = np.flatnonzero(blur((volume.array > fixed.threshold).astype(np.float32), sigmas) > 0.02)
    place = (np.arange(FINEST_POINTS) + rng.random(FINEST_POINTS)) / FINEST_POINTS * len(near)
    drawn = near.take(rng.permutation(place.astype(np.int64)), mode="clip")
    index = np.stack(np.unravel_index(drawn, volume.shape), axis=1)
    reach_mm = CUBE_SPACING_MM * CUBE_VOXELS / 2
    within = (np.abs(to_mm(index, volume) - fixed.centre_mm) < reach_mm).all(axis=1)
    return np.asarray(index[within], dtype=np.int64)


def to_mm(index: NDArray[np.int64], grid: Grid | Volume) -> NDArray[np.float64]:
    """Return the LPS mm of (n, 3) voxels of the grid."""
    return np.asarray(index @ grid.affine[:3, :3].T + grid.affine[:3, 3])
