"""The method in one function: lay a PET on an MR of the same head.

Flow: volume > preprocess > problem > looks, estimation (steps 1 to 6, repeated) > search (refinement) > evidence >
confidence, by [pipeline]; step 7, interpolation, is `resample`'s, for whoever wants the moving volume on a grid
Never: DICOM, a file but the network's, a clock that decides anything, random state of the process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from threadpoolctl import threadpool_limits

from registration.confidence import Verdict, confidence, is_calibrated, is_doubtful, verdict
from registration.descriptors import Network
from registration.errors import NoOverlapError, TooFewPointsError
from registration.estimation import estimate
from registration.evidence import Evidence, gather
from registration.guided import guide
from registration.looks import FeatureEstimate, look_at_moving, match_look
from registration.matching import Matches, no_matches
from registration.preprocess import prepare_fixed, prepare_moving
from registration.problem import Pose, Problem, pose_problem
from registration.profiles import DEFAULT, Profile
from registration.refinement import COARSE
from registration.search import (
    centre_start,
    choose_apart,
    climb,
    climb_at_first,
    polish,
    search_by_similarity,
    turn_starts,
)
from registration.similarity import NO_SOLUTION, measure
from registration.transforms import RigidTransform
from registration.volume import Volume

Progress = Callable[[str, float], None]

FIRST_ROUND, NEXT_ROUNDS = (np.inf, 12.0), (24.0, 8.0)  # search radius and RANSAC's tolerance, mm
ROUNDS_MAX = 6
SETTLED_MM = 2.5  # a round that moves the brain less than this is the last
TURNED_LOOKS = 6  # of 60 turned starts, those that are most alike
MANY_INLIERS = 50  # of wrong estimates none of 15 had as many, of right ones each of 45
TOPS_LOOKED_FROM, TOPS_APART_MM = 2, 15.0


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
    is_calibrated : bool
        Whether it was fitted to runs of this profile with this network; without, nothing is accepted.
    metrics : mapping of str to float
        The signals behind the confidence, and counts; units are in the names.
    timings_s : mapping of str to float
        Wall seconds of each stage.
    device : str
        "cpu" or "cuda", where the network ran.
    model_sha256 : str
    matches : Matches
        The last look's, found without a radius, right and wrong ones: `fixed` in LPS mm of the fixed volume, `moving`
        in LPS mm of the moving one, so that `fixed_from_moving.apply(matches.moving)` lies near `matches.fixed` where
        a match is right. Empty when that look gave no estimate.
    """

    fixed_from_moving: RigidTransform
    verdict: Verdict
    confidence: float
    is_calibrated: bool
    metrics: Mapping[str, float]
    timings_s: Mapping[str, float]
    device: str
    model_sha256: str
    matches: Matches = field(default_factory=no_matches)


def register(
    fixed: Volume,
    moving: Volume,
    network: Network,
    *,
    profile: Profile = DEFAULT,
    seed: int = 0,
    progress: Progress | None = None,
) -> Registration:
    """Find the rigid transform that lays the moving volume (PET) on the fixed one (MR) of the same head.

    Parameters
    ----------
    fixed, moving : Volume
        LPS mm; any spacing and axis order, any field of view that holds at least a quarter of the head. The fixed
        one's head lies about upright, as headers say of a patient's: its neck is left out below, and its descriptors
        are upright.
    network : Network
        The one that the profile names.
    profile : Profile
        Which way through the method.
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
    ModelError
        If the network is not the profile's.
    DeviceError
        If the network's device fails, as when its memory is full.
    """
    with threadpool_limits(limits=1, user_api="blas"):  # which rounds by the number of its threads
        watch = Stopwatch(progress)
        prepared = prepare_fixed(fixed), prepare_moving(moving)
        watch.lap("prepare", 0.1)
        problem = pose_problem(prepared, network, profile, seed)  # steps 1 to 4 on the fixed side
        watch.lap("fixed_features", 0.3)
        start = centre_start(*prepared)
        best, evidence = find_pose(problem, start, watch)
        if best.similarity <= NO_SOLUTION:
            raise NoOverlapError(
                "no transform tried lays a quarter of the head inside the moving volume's field of view"
            )
        watch.lap("judge", 1.0)
        probability, is_fitted = confidence(evidence.metrics), is_calibrated(profile, network)
        return Registration(  # step 8
            fixed_from_moving=best.fixed_from_moving,
            verdict=verdict(probability, evidence.metrics, is_calibrated=is_fitted),
            confidence=probability,
            is_calibrated=is_fitted,
            metrics=evidence.metrics,
            timings_s=watch.timings_s,
            device=network.device,
            model_sha256=network.sha256,
            matches=evidence.matches,
        )


def find_pose(problem: Problem, start: RigidTransform, watch: Stopwatch) -> tuple[Pose, Evidence]:
    """Let features find the head, and what the profile says end the search."""
    features = estimate_by_features(problem, start)
    watch.lap("moving_features", 0.6)
    if problem.profile.last == "similarity":
        return polish_until_sure(problem, start, features, watch)
    if problem.profile.last == "guided":
        features = guide(problem, look_further(problem, features, start))
        watch.lap("guided", 0.8)
    return features.pose, gather(problem, features.pose, [features.pose], features, features.look)


def estimate_by_features(problem: Problem, start: RigidTransform, rounds_max: int = ROUNDS_MAX) -> FeatureEstimate:
    """Repeat steps 1 to 6 from a start until the volumes get no more alike; the last transform that made them so."""
    best = FeatureEstimate(Pose(start, measure(problem.coarse, start.inverse().matrix)), None, 0)
    for number in range(rounds_max):
        radius_mm, tolerance_mm = NEXT_ROUNDS if number else FIRST_ROUND
        rng = np.random.default_rng([problem.seed, number])
        current = best.pose.fixed_from_moving
        try:
            look = look_at_moving(problem, current)  # 1 key points, 2 patches, 3 CNN and SIFT, 4 joined
            matches = match_look(problem, look, radius_mm)  # 5
            step = estimate(matches, tolerance_mm, rng)  # 6
        except TooFewPointsError:
            return best
        moved = step.fixed_from_moving @ current
        similarity = measure(problem.coarse, moved.inverse().matrix)
        if similarity <= best.pose.similarity:
            return FeatureEstimate(best.pose, look, best.inliers)
        best = FeatureEstimate(Pose(moved, similarity), look, step.inliers)
        if problem.displacement_mm(moved, current) < SETTLED_MM:
            break
    return best


def look_further(problem: Problem, features: FeatureEstimate, start: RigidTransform) -> FeatureEstimate:
    """Look from turned starts, too, until many matches agree; returns the best estimate by similarity."""
    found = [features]
    for turned in turn_starts(problem, start)[:TURNED_LOOKS]:
        if found[-1].inliers >= MANY_INLIERS:
            break
        found.append(estimate_by_features(problem, turned))
    return max(found, key=lambda estimate: estimate.pose.similarity)


def polish_until_sure(
    problem: Problem, start: RigidTransform, features: FeatureEstimate, watch: Stopwatch
) -> tuple[Pose, Evidence]:
    """Climb by similarity from what features found and from the start, and while in doubt from more; the best pose."""
    rough = climb_at_first(problem, features.pose.fixed_from_moving, start)
    best = polish(problem, rough)
    watch.lap("polish", 0.8)
    evidence = gather(problem, best, rough, features, features.look)
    searches: tuple[tuple[str, Callable[[], list[Pose]], float], ...] = (
        ("turned", lambda: search_by_similarity(problem, start), 0.85),
        ("turned_features", lambda: search_by_features(problem, rough), 0.9),
    )
    for name, search, share in searches:
        if not is_doubtful(evidence.metrics):
            break
        rough = [*rough, *search()]
        best = polish(problem, rough)
        evidence = gather(problem, best, rough, features, evidence.look)
        watch.lap(name, share)
    return best, evidence


def search_by_features(problem: Problem, rough: Sequence[Pose]) -> list[Pose]:
    """Look by features from the best tops so far, one round each, and climb from the best."""
    chosen = choose_apart(problem, rough, TOPS_APART_MM)[:TOPS_LOOKED_FROM]
    found = [estimate_by_features(problem, top.fixed_from_moving, rounds_max=1).pose for top in chosen]
    found.sort(key=lambda pose: -pose.similarity)
    return climb(problem.coarse, [pose.fixed_from_moving for pose in found[:3]], problem.centre_mm, COARSE)


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
