"""How well a network alone tells places apart, on samples of people it never saw.

Flow: samples > [scoring] > training's end | card
Never: SIFT's half of the descriptor, the search, or an average over rotations that hides where it fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.train.anatomy import Person
from models.train.samples import Pose, Subject, draw_pairs, make_scene, make_subject
from registration.keypoints import spread
from registration.matching import distances
from registration.preprocess import CUBE_SPACING_MM

BINS_DEG = {"0-8": (0.0, 8.0), "15-30": (15.0, 30.0), "22-45": (22.0, 45.0), "45": (45.0, 45.0)}
RIGHT_MM = 8.0
PLACES = 300
SAMPLES = 100

Scores = Mapping[str, Mapping[str, float]]  # by person, by range of rotation: the mean top-1 share


class Describer(Protocol):
    """Whatever turns patches into descriptors: a network as registration loads it, or as it was trained."""

    def describe(self, patches: NDArray[np.float32], *, is_moving: bool) -> NDArray[np.float32]:
        """Return (n, d) unit vectors of (n, 3, 64, 64) patches."""


def score_people(people: Sequence[Person], network: Describer, planes: tuple[int, ...], seed: int) -> Scores:
    """Return the top-1 share within 8 mm of 300 places in a hundred samples, drawn by person and range of rotation."""
    subjects = [make_subject(person) for person in people]
    found: dict[str, dict[str, list[float]]] = {subject.name: {name: [] for name in BINS_DEG} for subject in subjects}
    for number in range(SAMPLES):
        subject = subjects[number % len(subjects)]
        name = list(BINS_DEG)[number // len(subjects) % len(BINS_DEG)]
        rng = np.random.default_rng([seed, number])
        found[subject.name][name].append(score_scene(subject, Pose(BINS_DEG[name], planes), network, rng))
    return {
        person: {name: round(float(np.mean(shares)), 3) for name, shares in of_bins.items() if shares}
        for person, of_bins in found.items()
    }


def average(scores: Scores, people: Sequence[Person]) -> Mapping[str, float]:
    """Return the mean over people of each range of rotation, whole heads and brains apart."""
    kinds = {person.name: "brain" if person.is_stripped else "head" for person in people}
    shares: dict[str, list[float]] = {}
    for person, of_bins in scores.items():
        for name, share in of_bins.items():
            shares.setdefault(f"{kinds[person]} {name} deg", []).append(share)
    return {key: round(float(np.mean(values)), 3) for key, values in sorted(shares.items())}


def score_scene(subject: Subject, pose: Pose, network: Describer, rng: np.random.Generator) -> float:
    """Return the share of 300 MR places whose nearest of 300 PET descriptors lies within 8 mm of the right place."""
    scene = make_scene(subject, rng, augment=False)
    points = spread(scene.points, rng.random(len(scene.points)), PLACES)
    pairs = draw_pairs(scene, points, pose, rng, augment=False)
    mr = network.describe(pairs.mr, is_moving=False)
    pet = network.describe(pairs.pet, is_moving=True)
    places_mm = pairs.places * CUBE_SPACING_MM
    chosen = (mr @ pet.T).argmax(axis=1)
    apart = distances(places_mm, places_mm)[np.arange(len(chosen)), chosen]
    return float((apart <= RIGHT_MM).mean())
