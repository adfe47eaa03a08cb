"""The method in one function: lay a PET on an MR of the same head.

Flow: volume > preprocess > problem (1 key points, 2 patches, 3 descriptors, 4 joined) > search (5 matching,
6 estimation, repeated; refinement) > confidence, by [pipeline]; 7 interpolation is `resample`, 8 the caller's
Never: DICOM, a file but the network's, a clock that decides anything, random state of the process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from registration.confidence import Verdict, confidence, is_doubtful, verdict
from registration.descriptors import Network
from registration.errors import NoOverlapError, TooFewPointsError
from registration.estimation import estimate
from registration.preprocess import prepare_fixed, prepare_moving
from registration.problem import Pose, Problem, pose_problem
from registration.search import (
    ROUNDS,
    FeatureEstimate,
    Look,
    centre_start,
    climb,
    estimate_by_features,
    look_at_moving,
    make_starts,
    match_look,
    polish,
    search_by_features,
    search_by_similarity,
)
from registration.similarity import NO_SOLUTION, joint_histogram, measure
from registration.transforms import RigidTransform
from registration.volume import Volume

RIGHT_MATCH_MM = 12.0  # a match found without a radius that lands this near supports a pose
REUSE_MM = 4.0  # a look from a pose this near is as good as a new one
FAR_MM = 99.0  # stands for "no estimate" in metrics
SMALL_TURNS_DEG = ((4, 0, 0), (-4, 0, 0), (0, 4, 0), (0, -4, 0), (0, 0, 4), (0, 0, -4))
SHARPEST = 20.0  # where nothing is left of the likeness once turned

Progress = Callable[[str, float], None]


@dataclass(frozen=True, eq=False)
class Registration:
    """What `register` found.

    Attributes
    ----------
    fixed_from_moving : RigidTransform
        LPS mm of the moving volume to LPS mm of the fixed one.
    verdict : "accept", "review" or "reject"
    confidence : float
        0 to 1, the estimated probability that the mean target registration error over the brain is under 5 mm.
    metrics : mapping of str to float
        The signals behind the confidence, and counts; units are in the names.
    timings_s : mapping of str to float
        Wall seconds of each stage.
    device : str
        "cpu" or "cuda", where the network ran.
    model_sha256 : str
    """

    fixed_from_moving: RigidTransform
    verdict: Verdict
    confidence: float
    metrics: Mapping[str, float]
    timings_s: Mapping[str, float]
    device: str
    model_sha256: str


def register(
    fixed: Volume, moving: Volume, network: Network, *, seed: int = 0, progress: Progress | None = None
) -> Registration:
    """Find the rigid transform that lays the moving volume (PET) on the fixed one (MR) of the same head.

    Parameters
    ----------
    fixed, moving : Volume
        LPS mm; any spacing and axis order, any field of view that holds at least a third of the head.
    network : Network
    seed : int
        Of every random draw: same volumes, seed and machine, same transform to the bit.
    progress : callable, optional
        Called with each stage's name when it ends and the share done, 0 to 1.

    Returns
    -------
    Registration

    Raises
    ------
    InvalidVolumeError, EmptyVolumeError, TooFewPointsError, NoOverlapError
        If the volumes cannot be registered at all; a doubtful result is no error but a verdict.
    """
    watch = Stopwatch(progress)
    prepared = prepare_fixed(fixed), prepare_moving(moving)
    watch.lap("prepare", 0.1)
    problem = pose_problem(fixed, prepared, network, seed)
    watch.lap("fixed_features", 0.3)
    start = centre_start(*prepared)
    features = estimate_by_features(problem, start)
    watch.lap("moving_features", 0.6)
    rough = climb(problem, make_starts(problem, features.pose.fixed_from_moving, start))
    polished = polish(problem, rough)
    watch.lap("polish", 0.8)
    metrics = judge(problem, polished, rough, features)
    for name, search, share in (("turned", search_by_similarity, 0.85), ("turned_features", search_by_features, 0.9)):
        if not is_doubtful(metrics):
            break
        polished = search(problem, polished, start)
        metrics = judge(problem, polished, rough, features)
        watch.lap(name, share)
    if polished[0].similarity <= NO_SOLUTION:
        raise NoOverlapError("no transform tried lays a third of the head inside the moving volume's field of view")
    watch.lap("judge", 1.0)
    probability = confidence(metrics)
    return Registration(
        fixed_from_moving=polished[0].fixed_from_moving,
        verdict=verdict(probability, metrics),
        confidence=probability,
        metrics=metrics,
        timings_s=watch.timings_s,
        device=network.device,
        model_sha256=network.sha256,
    )


class Stopwatch:
    """Wall seconds of each stage, told to whoever watches; decides nothing."""

    def __init__(self, progress: Progress | None) -> None:
        self.timings_s: dict[str, float] = {}
        self._progress = progress
        self._last = time.perf_counter()

    def lap(self, stage: str, share: float) -> None:
        """End a stage."""
        now = time.perf_counter()
        self.timings_s[stage] = now - self._last
        self._last = now
        if self._progress is not None:
            self._progress(stage, share)


def judge(problem: Problem, polished: list[Pose], rough: list[Pose], features: FeatureEstimate) -> dict[str, float]:
    """Measure what speaks for the best pose: features, independent starts, the peak's sharpness, the overlap."""
    best = polished[0].fixed_from_moving
    apart = [problem.displacement_mm(pose.fixed_from_moving, best) for pose in rough]
    _, overlap = joint_histogram(problem.fine, best.inverse().matrix)
    return {
        "feature_to_final_mm": min(problem.displacement_mm(features.pose.fixed_from_moving, best), FAR_MM),
        "starts_apart_mm": min(float(np.median(apart)), FAR_MM),
        "overlap": overlap,
        "similarity": polished[0].similarity,
        "sharpness": find_sharpness(problem, polished[0]),
        "inliers": float(features.inliers),
        **fresh_look(problem, best, features.look),
    }


def find_sharpness(problem: Problem, pose: Pose) -> float:
    """Return how far similarity stands above that of the same pose turned by 4 degrees, in multiples of the latter.

    The folds of one head lie on one another only where the turn is right to a few degrees. Two heads are alike in the
    large alone: turned a little, they are hardly less alike.
    """
    turned = [
        RigidTransform.from_parameters(np.radians(turn), np.zeros(3), problem.centre_mm) @ pose.fixed_from_moving
        for turn in SMALL_TURNS_DEG
    ]
    values = [measure(problem.fine, transform.inverse().matrix) for transform in turned]
    around = [value - 1 for value in values if value > NO_SOLUTION]
    return min((pose.similarity - 1) / max(float(np.mean(around)), 1e-3), SHARPEST) if around else 1.0


def fresh_look(problem: Problem, best: RigidTransform, look: Look | None) -> dict[str, float]:
    """Match again from the final pose, without a radius: where do features alone put the moving volume now?"""
    nothing = {"fresh_to_final_mm": FAR_MM, "match_share": 0.0, "matches_kept": 0.0}
    try:
        if look is None or problem.displacement_mm(look.fixed_from_moving, best) > REUSE_MM:
            look = look_at_moving(problem, best)
        matches = match_look(problem, look)
        final_from_look = best @ look.fixed_from_moving.inverse()
        apart = np.linalg.norm(final_from_look.apply(matches.moving) - matches.fixed, axis=1)
        fresh = estimate(matches, ROUNDS[-1][1], np.random.default_rng([problem.seed, len(ROUNDS)]))
    except TooFewPointsError:
        return nothing
    return {
        "fresh_to_final_mm": min(problem.displacement_mm(fresh.fixed_from_moving, final_from_look), FAR_MM),
        "match_share": float((apart <= RIGHT_MATCH_MM).mean()),
        "matches_kept": float(len(matches)),
    }
