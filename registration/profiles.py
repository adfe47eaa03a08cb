"""The choices the method leaves open, by name: `default` is what measures best, `paper` what the paper describes.

Flow: pipeline > [profiles] > keypoints | descriptors | matching
Never: a choice of one step alone that no benchmark compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from registration.matching import Rule


@dataclass(frozen=True)
class Profile:
    """One way through the method.

    Attributes
    ----------
    name : str
    network : str
        Stem of the ONNX file and its card.
    planes : tuple of int
        The planes key points are looked for and described in: 0 axial, 1 coronal, 2 sagittal.
    has_grid : bool
        Whether the moving volume's candidates stand on a grid too, or at SIFT key points alone.
    cnn_share : float
        Of the joined descriptor, 0 to 1; SIFT has the rest.
    rule : Rule
        When two points match.
    last : "similarity", "guided" or "nothing"
        What ends the search: similarity climbs on from what features found, and from other starts; or features alone
        answer, after a round of guided matching by the network or without.
    """

    name: str
    network: str
    planes: tuple[int, ...]
    has_grid: bool
    cnn_share: float
    rule: Rule
    last: Literal["similarity", "guided", "nothing"]


DEFAULT = Profile(
    name="default",
    network="cnn_sift",
    planes=(0, 1, 2),
    has_grid=True,
    cnn_share=0.6,
    rule=Rule(ratio=0.975, apart_mm=12.0, mutual_mm=12.0, soft_mm=12.0),
    last="similarity",
)
# In-plane SIFT-128 and a 64x64 patch of the same slice, SIFT key points on both sides, Lowe's ratio of 0.8 against any
# other candidate; both descriptors count alike.
PAPER = Profile(
    name="paper",
    network="alexnet",
    planes=(0,),
    has_grid=False,
    cnn_share=0.5,
    rule=Rule(ratio=0.8, apart_mm=1.0, mutual_mm=float("inf"), soft_mm=1.0),
    last="nothing",
)
PROFILES: Mapping[str, Profile] = {profile.name: profile for profile in (DEFAULT, PAPER)}
