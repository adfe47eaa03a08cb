"""The method in one function: lay a PET on an MR of the same head.

Flow: volume > preprocess > problem (1 key points, 2 patches, 3 descriptors, 4 joined) > search (5 matching,
6 estimation, repeated; refinement) > evidence > confidence, by [pipeline]; 7 interpolation is `resample`'s, 8 the
caller's
Never: DICOM, a file but the network's, a clock that decides anything, random state of the process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from registration.confidence import Verdict, confidence, is_doubtful, verdict
from registration.descriptors import Network
from registration.errors import NoOverlapError
from registration.evidence import Evidence, gather
from registration.matching import Matches, no_matches
from registration.preprocess import prepare_fixed, prepare_moving
from registration.problem import Pose, Problem, pose_problem
from registration.profiles import DEFAULT, Profile
from registration.search import (
    FeatureEstimate,
    centre_start,
    climb,
    estimate_by_features,
    guide,
    look_further,
    make_starts,
    polish,
    search_by_features,
    search_by_similarity,
)
from registration.similarity import NO_SOLUTION
from registration.transforms import RigidTransform
from registration.volume import Volume

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
    matches : Matches
        The last look's, found without a radius, right and wrong ones: `fixed` in LPS mm of the fixed volume, `moving`
        in LPS mm of the moving one, so that `fixed_from_moving.apply(matches.moving)` lies near `matches.fixed` where
        a match is right. None when that look gave no estimate.
    """

    fixed_from_moving: RigidTransform
    verdict: Verdict
    confidence: float
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
        LPS mm; any spacing and axis order, any field of view that holds at least a quarter of the head.
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
    """
    watch = Stopwatch(progress)
    prepared = prepare_fixed(fixed), prepare_moving(moving)
    watch.lap("prepare", 0.1)
    problem = pose_problem(prepared, network, profile, seed)
    watch.lap("fixed_features", 0.3)
    start = centre_start(*prepared)
    features = estimate_by_features(problem, start)
    watch.lap("moving_features", 0.6)
    if profile.last == "guided":
        features = guide(problem, look_further(problem, features, start))
        watch.lap("guided", 0.8)
    if profile.last == "similarity":
        best, evidence = polish_until_sure(problem, start, features, watch)
    else:
        best = features.pose
        evidence = gather(problem, best, [best], features, features.look)
    if best.similarity <= NO_SOLUTION:
        raise NoOverlapError("no transform tried lays a quarter of the head inside the moving volume's field of view")
    watch.lap("judge", 1.0)
    probability = confidence(evidence.metrics)
    return Registration(
        fixed_from_moving=best.fixed_from_moving,
        verdict=verdict(probability, evidence.metrics, is_calibrated=profile.is_calibrated),
        confidence=probability,
        metrics=evidence.metrics,
        timings_s=watch.timings_s,
        device=network.device,
        model_sha256=network.sha256,
        matches=evidence.matches,
    )


def polish_until_sure(
    problem: Problem, start: RigidTransform, features: FeatureEstimate, watch: Stopwatch
) -> tuple[Pose, Evidence]:
    """Climb by similarity from what features found and from the start, and while in doubt from more; the best pose."""
    rough = climb(problem, make_starts(problem, features.pose.fixed_from_moving, start))
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
