"""What speaks for a pose: features, independent starts, the peak's sharpness, the overlap; signals that share no cause.

Flow: search > [evidence] > confidence
Never: a verdict; a transform changed by what is found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from registration.errors import TooFewPointsError
from registration.estimation import estimate
from registration.looks import FeatureEstimate, Look, look_at_moving, match_look
from registration.matching import Matches, no_matches
from registration.problem import Pose, Problem
from registration.refinement import COARSE, FINE, climb_from
from registration.search import choose_apart
from registration.similarity import NO_SOLUTION, joint_histogram, measure
from registration.transforms import RigidTransform

RIGHT_MATCH_MM = 12.0  # a match found without a radius that lands this near supports a pose
FRESH_DRAW = 1000  # a draw of its own, beside those of the rounds
FRESH_MM = 6.0  # RANSAC's tolerance for an estimate from matches found without a radius
REUSE_MM = 4.0  # a look from a pose this near is as good as a new one
ELSEWHERE_MM = 15.0  # a top this far off is another one
STARTS_COUNTED = 3  # those whose climbs ended most alike: do they agree?
FAR_MM = 99.0  # stands for "no estimate" in metrics
AXES = np.vstack([np.eye(3), -np.eye(3)])
SMALL_TURN_DEG, LARGER_TURN_DEG = 6.0, 12.0
SHARPEST = 5.0  # at most, and where nothing else is known
NO_FALL = 0.25  # a parabola's, which says nothing
NO_FRESH_LOOK: Mapping[str, float] = {
    "fresh_to_final_mm": FAR_MM,
    "match_share": 0.0,
    "match_apart_mm": FAR_MM,
    "matches_kept": 0.0,
}


@dataclass(frozen=True, eq=False)
class Evidence:
    """The signals, the matches behind some of them (as `Registration.matches`), and the look they were found in."""

    metrics: Mapping[str, float]
    matches: Matches
    look: Look | None


def gather(
    problem: Problem, best: Pose, rough: Sequence[Pose], features: FeatureEstimate, look: Look | None
) -> Evidence:
    """Gather what speaks for the best pose.

    Parameters
    ----------
    problem : Problem
    best : Pose
        The polished one that will be the answer.
    rough : sequence of Pose
        Where all climbs on the coarse comparison ended.
    features : FeatureEstimate
        What features said from the first start.
    look : Look, optional
        An earlier one; taken again where it is near the best pose.
    """
    most_alike = sorted(rough, key=lambda pose: -pose.similarity)[:STARTS_COUNTED]
    apart = [problem.displacement_mm(pose.fixed_from_moving, best.fixed_from_moving) for pose in most_alike]
    _, overlap = joint_histogram(problem.fine, best.fixed_from_moving.inverse().matrix)
    feature_mm = problem.displacement_mm(features.pose.fixed_from_moving, best.fixed_from_moving)
    metrics = {
        "feature_to_final_mm": min(feature_mm, FAR_MM),
        "starts_apart_mm": min(float(np.median(apart)), FAR_MM),
        "margin": find_margin(problem, rough),
        "mirror_margin": find_mirror_margin(problem, best.fixed_from_moving),
        "overlap": overlap,
        "similarity": best.similarity,
        **measure_peak(problem, best.fixed_from_moving),
        "inliers": float(features.inliers),
    }
    if look is None or problem.displacement_mm(look.fixed_from_moving, best.fixed_from_moving) > REUSE_MM:
        try:
            look = look_at_moving(problem, best.fixed_from_moving)
        except TooFewPointsError:
            return Evidence({**metrics, **NO_FRESH_LOOK}, no_matches(), None)
    fresh, matches = match_afresh(problem, best.fixed_from_moving, look)
    return Evidence({**metrics, **fresh}, matches, look)


def find_margin(problem: Problem, rough: Sequence[Pose]) -> float:
    """Return how far the most alike top stands above the next one elsewhere, as `find_fall` has it."""
    first, *others = choose_apart(problem, rough, ELSEWHERE_MM)
    return find_fall(first.similarity, [max(others[0].similarity, 1.0)]) if others else SHARPEST


def find_mirror_margin(problem: Problem, fixed_from_moving: RigidTransform) -> float:
    """Return how far a pose stands above that of the PET's mirror image, as `find_fall` has it: below 1 if mirrored.

    The mirror image is that at the middle plane of the head under the pose; it climbs to its own top from there.
    """
    pose, mirror = fixed_from_moving.inverse().matrix, np.diag([-1.0, 1.0, 1.0, 1.0])
    mirror[0, 3] = 2 * problem.centre_mm[0]
    mirrored, _ = climb_from(problem.coarse, pose @ mirror, problem.centre_mm, COARSE)
    _, similarity = climb_from(problem.fine, mirrored, problem.centre_mm, FINE)
    return find_fall(measure(problem.fine, pose), [max(similarity, 1.0)])


def measure_peak(problem: Problem, fixed_from_moving: RigidTransform) -> Mapping[str, float]:
    """Measure how fast the volumes get less alike when the moving one is turned off the pose.

    The folds of one head lie on one another only where the turn is right to a few degrees: likeness falls at once. Two
    heads are alike in the large alone: turned a little, they are hardly less alike, and turned twice as far, four times
    as much less. It shows where both are hardly smoothed, and in many voxels.
    """
    here, *around = measure_turned(problem, fixed_from_moving)
    small, larger = (find_fall(here, values) for values in (around[: len(AXES)], around[len(AXES) :]))
    early = np.log(small) / np.log(larger) if larger > small > 1 else NO_FALL
    return {"sharpness": small, "early_fall": float(early)}


def measure_turned(problem: Problem, fixed_from_moving: RigidTransform) -> list[float]:
    """Return the similarity of a pose, then turned about each axis by the small and by the larger angle."""
    turns = [axis * turn_deg for turn_deg in (SMALL_TURN_DEG, LARGER_TURN_DEG) for axis in AXES]
    poses = [
        RigidTransform.from_parameters(np.radians(turn), np.zeros(3), problem.centre_mm) @ fixed_from_moving
        for turn in (np.zeros(3), *turns)
    ]
    with ThreadPoolExecutor(problem.network.threads) as pool:
        return list(pool.map(lambda pose: measure(problem.finest, pose.inverse().matrix), poses))


def find_fall(here: float, around: Sequence[float]) -> float:
    """Return how far a similarity stands above those around it, in multiples of the latter; both counted from 1."""
    known = [value - 1 for value in around if value > NO_SOLUTION]
    if not known or here <= NO_SOLUTION:
        return 1.0
    return float(np.clip((here - 1) / max(float(np.mean(known)), 1e-3), 0.0, SHARPEST))


def match_afresh(problem: Problem, best: RigidTransform, look: Look) -> tuple[Mapping[str, float], Matches]:
    """Match without a radius what a look near the best pose saw: where do features alone put the moving volume now?

    The matches come with their moving points in the moving volume's own frame.
    """
    try:
        matches = match_look(problem, look)
        fresh = estimate(matches, FRESH_MM, np.random.default_rng([problem.seed, FRESH_DRAW]))
    except TooFewPointsError:
        return NO_FRESH_LOOK, no_matches()
    final_from_look = best @ look.fixed_from_moving.inverse()
    apart = np.linalg.norm(final_from_look.apply(matches.moving) - matches.fixed, axis=1)
    metrics = {
        "fresh_to_final_mm": min(problem.displacement_mm(fresh.fixed_from_moving, final_from_look), FAR_MM),
        "match_share": float((apart <= RIGHT_MATCH_MM).mean()),
        "match_apart_mm": min(float(np.median(apart)), FAR_MM),
        "matches_kept": float(len(matches)),
    }
    return metrics, replace(matches, moving=look.fixed_from_moving.inverse().apply(matches.moving))
