"""What features see of the moving volume under one pose: steps 1 to 5 of the method, on its side.

Flow: problem > [looks] > pipeline | evidence
Never: a pose changed by what is seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from registration.descriptors import describe
from registration.keypoints import find_moving_points
from registration.matching import Matches, match
from registration.preprocess import make_cube
from registration.problem import Pose, Problem, to_mm
from registration.transforms import RigidTransform

MOVING_POINTS = 800


@dataclass(frozen=True, eq=False)
class Look:
    """The moving volume's candidates as described under one pose.

    Attributes
    ----------
    fixed_from_moving : RigidTransform
        The pose.
    places_mm : (n, 3) float64
        The candidates in fixed LPS mm under the pose.
    descriptors : (n, d) float32
    has_counterpart : (m,) bool
        Whether each fixed key point lies on the moving volume's foreground under the pose.
    """

    fixed_from_moving: RigidTransform
    places_mm: NDArray[np.float64]
    descriptors: NDArray[np.float32]
    has_counterpart: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class FeatureEstimate:
    """What features alone say: a pose, the last look taken, and how many matches stand behind it."""

    pose: Pose
    look: Look | None
    inliers: int


def look_at_moving(problem: Problem, fixed_from_moving: RigidTransform) -> Look:
    """Find the moving volume's candidates as it lies under a pose (step 1), and describe them (2 to 4)."""
    cube = make_cube(problem.moving, problem.grid, fixed_from_moving)
    index = find_moving_points(cube, MOVING_POINTS, problem.profile)
    descriptors = describe(cube, index, problem.network, problem.profile, is_moving=True)
    has_counterpart = cube.foreground[tuple(problem.fixed_index.T)]
    return Look(fixed_from_moving, to_mm(index, problem.grid), descriptors, has_counterpart)


def match_look(problem: Problem, look: Look, radius_mm: float = np.inf) -> Matches:
    """Match the fixed key points with the candidates of a look; both in fixed LPS mm under its pose.

    Within a radius the pose is trusted so far that key points without a counterpart under it are left out.
    """
    kept = np.flatnonzero(look.has_counterpart | np.isinf(radius_mm))
    fixed = problem.fixed_points[kept], problem.fixed_descriptors[kept]
    found = match(fixed, (look.places_mm, look.descriptors), problem.profile.rule, radius_mm=radius_mm)
    return replace(found, fixed_index=kept[found.fixed_index])
