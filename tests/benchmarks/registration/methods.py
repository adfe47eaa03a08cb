"""The methods under comparison, by name: ours whole and in parts, and the peers; each takes two volumes.

Flow: registration | peers > [methods] > worker
Never: a choice made for one case; the same settings meet every case.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from registration.descriptors import Network, find_model
from registration.errors import RegistrationError
from registration.pipeline import register
from registration.preprocess import prepare_fixed, prepare_moving
from registration.problem import make_comparisons
from registration.profiles import DEFAULT, PAPER, Profile
from registration.refinement import COARSE, FINE, refine, settle
from registration.search import TILT_DEG, TILT_MM, centre_start
from registration.similarity import NO_SOLUTION
from registration.transforms import RigidTransform
from registration.volume import Volume
from tests.benchmarks.registration import peers

THREADS = 2
NO_VERDICT = ""
NO_ANSWER = "no answer"
FEATURES = replace(DEFAULT, last="guided")


@dataclass(frozen=True, eq=False)
class Answer:
    """What a method says: a (4, 4) transform of LPS mm, or none, and how far it trusts itself where it says so."""

    fixed_from_moving: NDArray[np.float64] | None
    verdict: str = NO_VERDICT
    confidence: float = 0.0


@dataclass(frozen=True, eq=False)
class Measured:
    """One answer, and what it took; the peak is the whole process', both volumes and the network in it."""

    answer: Answer
    wall_s: float
    cpu_s: float
    peak_bytes: int


Run = Callable[[Volume, Volume], Answer]


@dataclass(frozen=True)
class Method:
    """A way to register.

    Attributes
    ----------
    name : str
    load : callable
        Does what is not timed: imports, the network. Returns what is timed.
    needs : str
        A module or a network that may be missing here.
    is_peer : bool
        Whether it is somebody else's.
    """

    name: str
    load: Callable[[], Run]
    needs: str
    is_peer: bool = False

    @property
    def is_here(self) -> bool:
        """Whether what it needs is installed."""
        if self.is_peer:
            return importlib.util.find_spec(self.needs) is not None
        return find_model(self.needs).is_file()


def load_network(profile: Profile) -> Network:
    """Load the network of a profile as every benchmark uses it."""
    return Network.load(profile.network, device="cpu", threads=THREADS)


def load_profile(profile: Profile) -> Run:
    """Return the node's method by one profile, its network warm."""
    network = load_network(profile)

    def run(fixed: Volume, moving: Volume) -> Answer:
        try:
            found = register(fixed, moving, network, profile=profile)
        except RegistrationError:
            return Answer(None, NO_ANSWER)
        return Answer(found.fixed_from_moving.matrix, found.verdict, found.confidence)

    return run


def load_similarity() -> Run:
    """Return the node's search without any feature."""
    return register_by_similarity


def register_by_similarity(fixed: Volume, moving: Volume) -> Answer:
    """Climb by normalised mutual information from the centres and from a tilt off them, and polish the better."""
    try:
        prepared, moved = prepare_fixed(fixed), prepare_moving(moving)
    except RegistrationError:
        return Answer(None, NO_ANSWER)
    _, coarse, fine, finest = make_comparisons(prepared, moved, seed=0)
    centre = centre_start(prepared, moved)
    tilt = RigidTransform.from_parameters(np.radians(TILT_DEG), np.array(TILT_MM), prepared.centre_mm)
    climbed = [refine(coarse, start, prepared.centre_mm, COARSE) for start in (centre, tilt @ centre)]
    best, _ = max(climbed, key=lambda found: found[1])
    polished, similarity = refine(fine, best, prepared.centre_mm, FINE)
    settled = settle(finest, polished, prepared.centre_mm, THREADS)
    return Answer(settled.matrix if similarity > NO_SOLUTION else None)


def load_peer(load: peers.Load) -> Run:
    """Return a peer; where it gives up, it has no answer."""
    register_by_peer = load(THREADS)

    def run(fixed: Volume, moving: Volume) -> Answer:
        try:
            return Answer(register_by_peer(fixed, moving))
        except RuntimeError:  # ITK's only exception, whatever went wrong
            return Answer(None, NO_ANSWER)

    return run


ALL = (
    Method("default", partial(load_profile, DEFAULT), DEFAULT.network),
    Method("paper", partial(load_profile, PAPER), PAPER.network),
    Method("features only", partial(load_profile, FEATURES), FEATURES.network),
    Method("SIFT only", partial(load_profile, replace(FEATURES, cnn_share=0.0, last="nothing")), FEATURES.network),
    Method("CNN only", partial(load_profile, replace(FEATURES, cnn_share=1.0)), FEATURES.network),
    Method("NMI only", load_similarity, DEFAULT.network),
    Method("SimpleITK", partial(load_peer, peers.load_simpleitk), "SimpleITK", is_peer=True),
    Method("SimpleITK multi-start", partial(load_peer, peers.load_simpleitk_multi_start), "SimpleITK", is_peer=True),
    Method("elastix", partial(load_peer, peers.load_elastix), "itk", is_peer=True),
    Method("ANTs", partial(load_peer, peers.load_ants), "ants", is_peer=True),
)
METHODS: Mapping[str, Method] = {method.name: method for method in ALL}
PEERS = tuple(method.name for method in ALL if method.is_peer)
