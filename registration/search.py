"""Where similarity looks for the answer: starts, climbs from them, and the polish of the best.

Flow: problem > [search] > pipeline
Never: a feature; a verdict (the best pose by similarity wins, and `confidence` says how far to trust it).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from registration.preprocess import Prepared
from registration.problem import Pose, Problem
from registration.refinement import COARSE, FINE, QUICK, Search, refine, settle
from registration.similarity import Comparison, measure, thin_out
from registration.transforms import RigidTransform, rotation_about

SAME_MM = 3.0  # poses nearer than this lead the fine climb to one top
CLOSE_CALL = 0.02  # of similarity: a coarse top this near the best is polished too
TILT_DEG, TILT_MM = (14.0, -12.0, 16.0), (10.0, -8.0, 8.0)
TURNED_CLIMBS, SLID_CLIMBS = 30, 80  # of 60 turned and of 1969 slid starts, those that are most alike
UPRIGHT_DEG, LATTICE_DEG = 45.0, 12.5
SLIDES_MM = range(-100, 101, 20)  # along the body: a slab of the head may show any part of it
SPARSE_POINTS = 2_000  # enough to tell which starts are worth a climb
SECOND_CLIMBS = 20


def centre_start(fixed: Prepared, moving: Prepared) -> RigidTransform:
    """Return the shift that lays the middle of the uptake on the middle of the head."""
    matrix = np.eye(4)
    matrix[:3, 3] = fixed.centre_mm - moving.centre_mm
    return RigidTransform(matrix)


def climb(
    comparison: Comparison, starts: Iterable[RigidTransform], centre_mm: NDArray[np.float64], search: Search
) -> list[Pose]:
    """Climb from each start: one after another, for threads wait for each other over so few points."""
    return [Pose(*refine(comparison, start, centre_mm, search)) for start in starts]


def measure_coarsely(problem: Problem, fixed_from_moving: RigidTransform) -> Pose:
    """Measure a transform on the coarse comparison."""
    return Pose(fixed_from_moving, measure(problem.coarse, fixed_from_moving.inverse().matrix))


def climb_coarsely(problem: Problem, start: RigidTransform) -> Pose:
    """Climb on the coarse comparison."""
    return Pose(*refine(problem.coarse, start, problem.centre_mm, COARSE))


def climb_at_first(problem: Problem, centre: RigidTransform) -> list[Pose]:
    """Climb from two starts: centres, and centres tilted off them."""
    tilt = RigidTransform.from_parameters(np.radians(TILT_DEG), np.array(TILT_MM), problem.centre_mm)
    return [climb_coarsely(problem, start) for start in (centre, tilt @ centre)]


def polish(problem: Problem, rough: Sequence[Pose]) -> Pose:
    """Climb on the fine comparison from the best rough pose, and from others that come close; returns the best.

    It has taken one more step on the finest comparison.
    """
    tops = choose_apart(problem, rough, SAME_MM)[:3]
    chosen = [pose.fixed_from_moving for pose in tops if pose.similarity > tops[0].similarity - CLOSE_CALL]
    fine = climb(problem.fine, chosen, problem.centre_mm, FINE)
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


@cache
def upright_rotations() -> NDArray[np.float64]:
    """Return the rotations about x, y and z by angles on a lattice, their norm 45 degrees at most: (179, 3, 3)."""
    reach = int(UPRIGHT_DEG / LATTICE_DEG)
    steps = np.mgrid[-reach : reach + 1, -reach : reach + 1, -reach : reach + 1].reshape(3, -1).T
    angles_deg = LATTICE_DEG * steps[np.linalg.norm(steps, axis=1) <= UPRIGHT_DEG / LATTICE_DEG]
    return np.array([rotation_about(angles) for angles in np.radians(angles_deg)])


def turn_starts(problem: Problem, start: RigidTransform) -> list[RigidTransform]:
    """Return the start turned about the middle of the head in every way, 60 of them, the most alike first."""
    turns = (RigidTransform.about(problem.centre_mm, turn, np.zeros(3)) for turn in icosahedral_rotations())
    return sort_alike(problem.coarse, [turn @ start for turn in turns])


def slide_starts(comparison: Comparison, start: RigidTransform, centre_mm: NDArray[np.float64]) -> list[RigidTransform]:
    """Return the start turned about the middle of the head by up to about 45 degrees and slid, the most alike first."""
    moves = (
        RigidTransform.about(centre_mm, turn, np.array([0.0, 0.0, slide_mm]))
        for slide_mm in SLIDES_MM
        for turn in upright_rotations()
    )
    return sort_alike(comparison, [move @ start for move in moves])


def sort_alike(comparison: Comparison, starts: Sequence[RigidTransform]) -> list[RigidTransform]:
    """Return the starts, those first under which the volumes are most alike."""
    return sorted(starts, key=lambda start: -measure(comparison, start.inverse().matrix))


def search_by_similarity(problem: Problem, start: RigidTransform) -> list[Pose]:
    """Climb a little from starts turned in every way or slid along the body, and once more from the best ends."""
    sparse = thin_out(problem.coarse, SPARSE_POINTS)
    turned, slid = turn_starts(problem, start), slide_starts(sparse, start, problem.centre_mm)
    ends = climb(sparse, [*turned[:TURNED_CLIMBS], *slid[:SLID_CLIMBS]], problem.centre_mm, QUICK)
    ends.sort(key=lambda end: -end.similarity)
    best = [end.fixed_from_moving for end in ends[:SECOND_CLIMBS]]
    return climb(problem.coarse, best, problem.centre_mm, QUICK)


def choose_apart(problem: Problem, poses: Sequence[Pose], apart_mm: float) -> list[Pose]:
    """Return the poses of which none is nearer than this to one that is more alike, the most alike first."""
    chosen: list[Pose] = []
    for pose in sorted(poses, key=lambda pose: -pose.similarity):
        if all(problem.displacement_mm(pose.fixed_from_moving, other.fixed_from_moving) > apart_mm for other in chosen):
            chosen.append(pose)
    return chosen
