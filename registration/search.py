"""Where the answer is looked for: rounds of features, climbs by similarity, and more starts when in doubt.

Flow: problem > [search] > pipeline
Never: a verdict; the best pose by similarity wins, and `confidence` says how far to trust it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from registration.descriptors import describe
from registration.errors import TooFewPointsError
from registration.estimation import estimate, fit
from registration.guided import match_nearby
from registration.keypoints import find_moving_points
from registration.matching import Matches, match
from registration.preprocess import Prepared, make_cube
from registration.problem import Pose, Problem, to_mm
from registration.refinement import COARSE, FINE, QUICK, Search, refine, settle
from registration.similarity import measure
from registration.transforms import RigidTransform

MOVING_POINTS = 1400
ROUNDS = ((np.inf, 12.0), (24.0, 8.0))  # search radius and RANSAC's tolerance, mm
GUIDED_ROUNDS, GUIDED_MM, GUIDED_SETTLED_MM = 6, 6.0, 1.0  # by guided matching: at most, tolerance, the last moves less
SETTLED_MM = 2.5  # a round that moves the brain less than this is the last
SAME_MM = 3.0  # poses nearer than this lead the fine climb to one top
CLOSE_CALL = 0.02  # of similarity: a coarse top this near the best is polished too
TILT_DEG, TILT_MM = (14.0, -12.0, 16.0), (10.0, -8.0, 8.0)
TURNED_CLIMBS, TURNED_LOOKS = 30, 6  # of 60 turned starts, those that are most alike
TOPS_LOOKED_FROM, TOPS_APART_MM = 4, 15.0
MANY_INLIERS = 50  # of wrong estimates none of 15 had as many, of right ones each of 45


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
    """

    fixed_from_moving: RigidTransform
    places_mm: NDArray[np.float64]
    descriptors: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class FeatureEstimate:
    """What features alone say: a pose, the last look taken, and how many matches stand behind it."""

    pose: Pose
    look: Look | None
    inliers: int


def centre_start(fixed: Prepared, moving: Prepared) -> RigidTransform:
    """Return the shift that lays the middle of the uptake on the middle of the head."""
    matrix = np.eye(4)
    matrix[:3, 3] = fixed.centre_mm - moving.centre_mm
    return RigidTransform(matrix)


def look_at_moving(problem: Problem, fixed_from_moving: RigidTransform) -> Look:
    """Do steps 1 to 4 on the moving side as it lies under a pose."""
    cube = make_cube(problem.moving_spline, problem.moving, problem.grid, fixed_from_moving)
    index = find_moving_points(cube, MOVING_POINTS, problem.profile)
    descriptors = describe(cube, index, problem.network, problem.profile, is_moving=True)
    return Look(fixed_from_moving, to_mm(index, problem.grid), descriptors)


def match_look(problem: Problem, look: Look, radius_mm: float = np.inf) -> Matches:
    """Do step 5: match the fixed key points with the candidates of a look; both in fixed LPS mm under its pose."""
    fixed = problem.fixed_points, problem.fixed_descriptors
    return match(fixed, (look.places_mm, look.descriptors), problem.profile.rule, radius_mm=radius_mm)


def estimate_by_features(problem: Problem, start: RigidTransform, rounds: int = len(ROUNDS)) -> FeatureEstimate:
    """Repeat steps 1 to 6 from a start; a round's transform is kept only if it makes the volumes more alike."""
    best = FeatureEstimate(Pose(start, measure(problem.coarse, start.inverse().matrix)), None, 0)
    for number, (radius_mm, tolerance_mm) in enumerate(ROUNDS[:rounds]):
        current = best.pose.fixed_from_moving
        try:
            look = (
                best.look if best.look and best.look.fixed_from_moving is current else look_at_moving(problem, current)
            )
            rng = np.random.default_rng([problem.seed, number])
            step = estimate(match_look(problem, look, radius_mm), tolerance_mm, rng)
        except TooFewPointsError:
            return best
        moved = step.fixed_from_moving @ current
        similarity = measure(problem.coarse, moved.inverse().matrix)
        if similarity <= best.pose.similarity:
            return FeatureEstimate(best.pose, look, best.inliers)
        best = FeatureEstimate(Pose(moved, similarity), look, step.inliers)
        if problem.displacement_mm(moved, current) < SETTLED_MM:
            return best
    return best


def look_further(problem: Problem, features: FeatureEstimate, start: RigidTransform) -> FeatureEstimate:
    """Look from turned starts, too, until many matches agree; returns the best estimate by similarity."""
    found = [features]
    for turned in turn_starts(problem, start)[:TURNED_LOOKS]:
        if found[-1].inliers >= MANY_INLIERS:
            break
        found.append(estimate_by_features(problem, turned))
    return max(found, key=lambda estimate: estimate.pose.similarity)


def guide(problem: Problem, best: FeatureEstimate) -> FeatureEstimate:
    """Go on with rounds of guided matching; one is kept only if it makes the volumes more alike on the fine scale."""
    pose = best.pose.fixed_from_moving
    similarity = measure(problem.fine, pose.inverse().matrix)
    for _ in range(GUIDED_ROUNDS):
        try:
            step = fit(match_nearby(problem, pose), RigidTransform.identity(), GUIDED_MM)
        except TooFewPointsError:
            break
        moved = step.fixed_from_moving @ pose
        reached = measure(problem.fine, moved.inverse().matrix)
        if reached <= similarity:
            break
        is_settled = problem.displacement_mm(moved, pose) < GUIDED_SETTLED_MM
        pose, similarity = moved, reached
        if is_settled:
            break
    return replace(best, pose=Pose(pose, measure(problem.coarse, pose.inverse().matrix)))


def make_starts(problem: Problem, by_features: RigidTransform, centre: RigidTransform) -> list[RigidTransform]:
    """Return three starts that share as little as possible: features, centres, and centres tilted off them."""
    tilt = RigidTransform.from_parameters(np.radians(TILT_DEG), np.array(TILT_MM), problem.centre_mm)
    return [by_features, centre, tilt @ centre]


def climb(problem: Problem, starts: Iterable[RigidTransform], search: Search = COARSE) -> list[Pose]:
    """Climb from each start on the coarse comparison, in as many threads as the network has."""
    with ThreadPoolExecutor(problem.network.threads) as pool:
        return list(pool.map(lambda start: Pose(*refine(problem.coarse, start, problem.centre_mm, search)), starts))


def polish(problem: Problem, rough: Sequence[Pose]) -> Pose:
    """Climb on the fine comparison from the best rough pose, and from others that come close; returns the best.

    It has taken one more step on the finest comparison.
    """
    tops = choose_apart(problem, rough, SAME_MM)[:3]
    chosen = [pose for pose in tops if pose.similarity > tops[0].similarity - CLOSE_CALL]
    fine = [Pose(*refine(problem.fine, pose.fixed_from_moving, problem.centre_mm, FINE)) for pose in chosen]
    top = max(fine, key=lambda pose: pose.similarity).fixed_from_moving
    best = settle(problem.finest, top, problem.centre_mm, problem.network.threads)
    return Pose(best, measure(problem.fine, best.inverse().matrix))


@cache
def icosahedral_rotations() -> NDArray[np.float64]:
    """Return the 60 rotations of an icosahedron, (60, 3, 3): no rotation is further than 44.5 degrees from one."""
    golden = (1 + np.sqrt(5)) / 2
    fifth = 0.5 * np.array([[1, -golden, 1 / golden], [golden, 1 / golden, -1], [1 / golden, 1, golden]])
    third = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
    found = [np.eye(3)]
    for rotation in found:  # grows until the products of the two generators come round
        for generator in (fifth, third):
            product = generator @ rotation
            if all(np.abs(product - other).max() > 1e-6 for other in found):
                found.append(product)
    return np.array(found)


def turn_starts(problem: Problem, start: RigidTransform) -> list[RigidTransform]:
    """Return the start turned about the middle of the head in every way, 60 of them, the most alike first."""
    turned = []
    for rotation in icosahedral_rotations():
        turn = np.eye(4)
        turn[:3, :3] = rotation
        turn[:3, 3] = problem.centre_mm - rotation @ problem.centre_mm
        turned.append(RigidTransform.from_matrix(turn) @ start)
    return sorted(turned, key=lambda found: -measure(problem.coarse, found.inverse().matrix))


def search_by_similarity(problem: Problem, start: RigidTransform) -> list[Pose]:
    """Climb a little from turned starts."""
    return climb(problem, turn_starts(problem, start)[:TURNED_CLIMBS], QUICK)


def search_by_features(problem: Problem, rough: Sequence[Pose]) -> list[Pose]:
    """Look by features from the best tops so far, one round each, and climb from the best."""
    chosen = choose_apart(problem, rough, TOPS_APART_MM)[:TOPS_LOOKED_FROM]
    found = [estimate_by_features(problem, top.fixed_from_moving, rounds=1).pose for top in chosen]
    found.sort(key=lambda pose: -pose.similarity)
    return climb(problem, [pose.fixed_from_moving for pose in found[:3]])


def choose_apart(problem: Problem, poses: Sequence[Pose], apart_mm: float) -> list[Pose]:
    """Return the poses of which none is nearer than this to one that is more alike, the most alike first."""
    chosen: list[Pose] = []
    for pose in sorted(poses, key=lambda pose: -pose.similarity):
        if all(problem.displacement_mm(pose.fixed_from_moving, other.fixed_from_moving) > apart_mm for other in chosen):
            chosen.append(pose)
    return chosen
