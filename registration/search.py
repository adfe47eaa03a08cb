"""Where similarity looks for the answer: starts, climbs from them, and the polish of the best.

Flow: problem > [search] > pipeline
Never: a feature; a verdict (the best pose by similarity wins, and `confidence` says how far to trust it).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
from numpy.typing import NDArray

from registration.preprocess import Prepared
from registration.problem import Pose, Problem
from registration.refinement import COARSE, FINE, QUICK, Search, refine, settle
from registration.similarity import measure
from registration.transforms import RigidTransform

SAME_MM = 3.0  # poses nearer than this lead the fine climb to one top
CLOSE_CALL = 0.02  # of similarity: a coarse top this near the best is polished too
TILT_DEG, TILT_MM = (14.0, -12.0, 16.0), (10.0, -8.0, 8.0)
TURNED_CLIMBS = 30  # of 60 turned starts, those that are most alike


def centre_start(fixed: Prepared, moving: Prepared) -> RigidTransform:
    """Return the shift that lays the middle of the uptake on the middle of the head."""
    matrix = np.eye(4)
    matrix[:3, 3] = fixed.centre_mm - moving.centre_mm
    return RigidTransform(matrix)


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


def choose_apart(problem: Problem, poses: Sequence[Pose], apart_mm: float) -> list[Pose]:
    """Return the poses of which none is nearer than this to one that is more alike, the most alike first."""
    chosen: list[Pose] = []
    for pose in sorted(poses, key=lambda pose: -pose.similarity):
        if all(problem.displacement_mm(pose.fixed_from_moving, other.fixed_from_moving) > apart_mm for other in chosen):
            chosen.append(pose)
    return chosen
