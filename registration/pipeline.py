"""The method in one function: lay a PET on an MR of the same head.

Flow: volume > preprocess > problem > looks, estimation (steps 1 to 6, repeated) > search (refinement) > evidence >
confidence, by [pipeline]; step 7, interpolation, is `resample`'s, for whoever wants the moving volume on a grid
Never: DICOM, a file but the network's, a clock that decides anything, random state of the process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

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
from registration.search import (
    centre_start,
    choose_apart,
    climb_at_first,
    climb_coarsely,
    measure_coarsely,
    polish,
    search_by_similarity,
    turn_starts,
)
from registration.similarity import NO_SOLUTION
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
        with ThreadPoolExecutor(1) as beside:
            preparing = beside.submit(prepare_moving, moving)
            prepared = prepare_fixed(fixed), preparing.result()
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
    if problem.profile.last == "similarity":
        return polish_until_sure(problem, start, watch)
    features = estimate_by_features(problem, start)
    watch.lap("moving_features", 0.6)
    if problem.profile.last == "guided":
        features = guide(problem, look_further(problem, features, start))
        watch.lap("guided", 0.8)
    return features.pose, gather(problem, features.pose, [features.pose], features, features.look)


def repeat_by_features(
    problem: Problem, start: Pose, reach: Callable[[Problem, RigidTransform], Pose], rounds_max: int = ROUNDS_MAX
) -> list[FeatureEstimate]:
    """Repeat steps 1 to 6 from a start until the volumes get no more alike; what each round found.

    `reach` makes the pose of a round out of the transform that its features estimate.
    """
    best, rounds = start, list[FeatureEstimate]()
    for number in range(rounds_max):
        radius_mm, tolerance_mm = NEXT_ROUNDS if number else FIRST_ROUND
        rng = np.random.default_rng([problem.seed, number])
        try:
            look = look_at_moving(problem, best.fixed_from_moving)  # 1 key points, 2 patches, 3 CNN and SIFT, 4 joined
            matches = match_look(problem, look, radius_mm)  # 5
            step = estimate(matches, tolerance_mm, rng)  # 6
        except TooFewPointsError:
            break
        reached = reach(problem, step.fixed_from_moving @ best.fixed_from_moving)
        rounds.append(FeatureEstimate(reached, look, step.inliers))
        moved_mm = problem.displacement_mm(reached.fixed_from_moving, best.fixed_from_moving)
        if reached.similarity <= best.similarity or moved_mm < SETTLED_MM:
            break
        best = reached
    return rounds


def estimate_by_features(problem: Problem, start: RigidTransform) -> FeatureEstimate:
    """Let features alone find the head: the round that made the volumes most alike, and the last look."""
    at_start = FeatureEstimate(measure_coarsely(problem, start), None, 0)
    rounds = [at_start, *repeat_by_features(problem, at_start.pose, measure_coarsely)]
    return replace(max(rounds, key=lambda found: found.pose.similarity), look=rounds[-1].look)


def look_further(problem: Problem, features: FeatureEstimate, start: RigidTransform) -> FeatureEstimate:
    """Look from turned starts, too, until many matches agree; returns the best estimate by similarity."""
    found = [features]
    for turned in turn_starts(problem, start)[:TURNED_LOOKS]:
        if found[-1].inliers >= MANY_INLIERS:
            break
        found.append(estimate_by_features(problem, turned))
    return max(found, key=lambda estimate: estimate.pose.similarity)


def polish_until_sure(problem: Problem, start: RigidTransform, watch: Stopwatch) -> tuple[Pose, Evidence]:
    """Climb by similarity from the start, let features say where the head lies, and while in doubt search on."""
    rough, features = search_at_first(problem, start)
    watch.lap("moving_features", 0.6)
    best = polish(problem, rough)
    watch.lap("polish", 0.8)
    evidence = gather(problem, best, rough, features, features.look)
    searches: tuple[tuple[str, Callable[[], list[Pose]], float], ...] = (
        ("turned_features", lambda: look_from_turned(problem, start), 0.85),
        ("turned", lambda: search_by_similarity(problem, start), 0.9),
        ("features_from_tops", lambda: look_from_tops(problem, rough), 0.95),
    )
    for name, search, share in searches:
        if not is_doubtful(evidence.metrics):
            break
        rough = [*rough, *search()]
        best = polish(problem, rough)
        evidence = gather(problem, best, rough, features, evidence.look)
        watch.lap(name, share)
    return best, evidence


def search_at_first(problem: Problem, start: RigidTransform) -> tuple[list[Pose], FeatureEstimate]:
    """Climb from the start and from a tilt off it, then from where features put the head, until nothing more is won.

    Returns every climb's end, and what features said last.
    """
    rough = climb_at_first(problem, start)
    top = max(rough, key=lambda pose: pose.similarity)
    rounds = repeat_by_features(problem, top, climb_coarsely)
    return [*rough, *(found.pose for found in rounds)], rounds[-1] if rounds else FeatureEstimate(top, None, 0)


def look_from_turned(problem: Problem, start: RigidTransform) -> list[Pose]:
    """Look by features from the start and turned ones, one round each, until many matches agree; climb where they lead.

    Where they agree there are two climbs more, from there and from a tilt off it, as from the first start.
    """
    found = list[Pose]()
    for turned in (start, *turn_starts(problem, start)[:TURNED_LOOKS]):
        for one in repeat_by_features(problem, measure_coarsely(problem, turned), climb_coarsely, 1):
            found.append(one.pose)
            if one.inliers >= MANY_INLIERS:
                return [*found, *climb_at_first(problem, one.pose.fixed_from_moving)]
    return found


def look_from_tops(problem: Problem, rough: Sequence[Pose]) -> list[Pose]:
    """Look by features from the best tops so far, one round each, and climb from where they put the head."""
    chosen = choose_apart(problem, rough, TOPS_APART_MM)[:TOPS_LOOKED_FROM]
    found = (repeat_by_features(problem, top, climb_coarsely, 1) for top in chosen)
    return [one.pose for rounds in found for one in rounds]


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
