"""Guided matching: where exactly a key point lies, looked for by the network next to where the estimate puts it.

Flow: pipeline > [guided] > estimation
Never: a place further off than 12 mm along an axis; SIFT's half of the descriptor, whose cells cannot be cut to what
both volumes show.

Sources: Hartley and Zisserman 2004, Multiple View Geometry, algorithm 4.6 (guided matching after a robust estimate).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from registration.errors import TooFewPointsError
from registration.estimation import FEWEST_MATCHES, fit
from registration.looks import FeatureEstimate
from registration.matching import Matches
from registration.patches import cut_patches, pad_for_patches
from registration.preprocess import CUBE_VOXELS, find_view, make_cube
from registration.problem import Pose, Problem
from registration.similarity import measure
from registration.transforms import RigidTransform

STEP_VOXELS = 4  # 8 mm each way: where a descriptor is as much less like as can be told from noise
OFFSETS = STEP_VOXELS * np.vstack([np.zeros((1, 3)), np.eye(3), -np.eye(3)]).astype(np.int64)
FURTHEST_STEPS = 1.5  # a top further off than this is guessed, not seen
LEAST_FALL = 1e-3  # of similarity, from the place to the mean of its two neighbours, twice
ROUNDS, TOLERANCE_MM, SETTLED_MM = 6, 6.0, 1.0  # at most; of the fit; a round that moves the brain less is the last


def guide(problem: Problem, best: FeatureEstimate) -> FeatureEstimate:
    """Go on with rounds of guided matching; one is kept only if it makes the volumes more alike on the fine scale."""
    pose = best.pose.fixed_from_moving
    similarity = measure(problem.fine, pose.inverse().matrix)
    for _ in range(ROUNDS):
        try:
            step = fit(match_nearby(problem, pose), RigidTransform.identity(), TOLERANCE_MM)
        except TooFewPointsError:
            break
        moved = step.fixed_from_moving @ pose
        reached = measure(problem.fine, moved.inverse().matrix)
        if reached <= similarity:
            break
        is_settled = problem.displacement_mm(moved, pose) < SETTLED_MM
        pose, similarity = moved, reached
        if is_settled:
            break
    return replace(best, pose=Pose(pose, measure(problem.coarse, pose.inverse().matrix)))


def match_nearby(problem: Problem, fixed_from_moving: RigidTransform) -> Matches:
    """Match the fixed key points with the places next to them, to a fraction of a voxel.

    The network describes the key point, and the moving volume there and a step to each side; the parabola along each
    axis has its top at the match. Both patches are cut to what both volumes show, so that the end of a field of view
    is no feature of either.

    Parameters
    ----------
    problem : Problem
    fixed_from_moving : RigidTransform
        Good to about 10 mm at the key points.

    Returns
    -------
    Matches
        Both points in fixed LPS mm under the pose; weights are larger where the top is sharper.

    Raises
    ------
    TooFewPointsError
        If fewer than 6 key points lie in the moving volume's foreground.
    """
    cube = make_cube(problem.moving, problem.grid, fixed_from_moving)
    index = problem.fixed_index
    is_inside = ((index >= STEP_VOXELS) & (index < CUBE_VOXELS - STEP_VOXELS)).all(axis=1)
    kept = np.flatnonzero(cube.foreground[tuple(index.T)] & is_inside)
    if len(kept) < FEWEST_MATCHES:
        raise TooFewPointsError(f"{len(kept)} key points on the moving volume, {FEWEST_MATCHES} needed")
    view = find_view(problem.moving.volume, problem.grid, fixed_from_moving)
    similarity = _compare_nearby(problem, cube.array, view, index[kept])
    here, up, down = similarity[:, :1], similarity[:, 1:4], similarity[:, 4:]
    fall = 2 * here - up - down
    steps = (up - down) / (2 * np.maximum(fall, LEAST_FALL))
    is_top = ((fall > LEAST_FALL) & (np.abs(steps) <= FURTHEST_STEPS)).all(axis=1) & (here[:, 0] > 0)
    fixed_mm = problem.fixed_points[kept]
    moving_mm = fixed_mm + steps @ (STEP_VOXELS * problem.grid.affine[:3, :3]).T
    weights = np.sqrt(fall[is_top].min(axis=1)) * here[is_top, 0]
    return Matches(fixed_mm[is_top], moving_mm[is_top], weights, kept[is_top])


def _compare_nearby(
    problem: Problem, moving: NDArray[np.float32], moving_view: NDArray[np.bool_], index: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return how like each fixed key point the moving volume is at each of the offsets from it: (n, 7)."""
    network, planes = problem.network, problem.profile.planes
    moving_padded, view_padded = pad_for_patches(moving), pad_for_patches(moving_view.astype(np.float32))
    fixed = cut_patches(pad_for_patches(problem.fixed_cube.array), index, planes)
    whole = network.describe(fixed, is_moving=False)
    fixed_view = cut_patches(pad_for_patches(problem.fixed_view.astype(np.float32)), index, planes)
    similarity = np.empty((len(index), len(OFFSETS)))
    for column, offset in enumerate(OFFSETS):
        seen = fixed * cut_patches(view_padded, index + offset, planes)
        is_cut = (seen != fixed).any(axis=(1, 2, 3))
        described = whole.copy()
        if is_cut.any():
            described[is_cut] = network.describe(seen[is_cut], is_moving=False)
        there = fixed_view * cut_patches(moving_padded, index + offset, planes)
        similarity[:, column] = (described * network.describe(there, is_moving=True)).sum(axis=1)
    return similarity
