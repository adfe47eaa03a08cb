"""How well the network alone tells places apart, on people it never saw.

Flow: samples > [scoring] > training's end | card
Never: SIFT's half of the descriptor, the search, or an average over rotations that hides where it fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from models.train.anatomy import Person
from models.train.samples import Pose, Subject, draw_pairs, make_scene, make_subject
from registration.descriptors import Network
from registration.keypoints import spread
from registration.matching import distances
from registration.preprocess import CUBE_SPACING_MM

BINS_DEG = {"0-8": (0.0, 8.0), "15-30": (15.0, 30.0), "22-45": (22.0, 45.0), "45": (45.0, 45.0)}
RIGHT_MM = 8.0
PLACES = 300
SCENES_OF_A_BIN = 2


def score_people(people: Sequence[Person], network: Network, planes: tuple[int, ...], seed: int) -> Mapping[str, float]:
    """Return the top-1 share within 8 mm of 300 places for each range of rotation, whole heads and brains apart."""
    scores: dict[str, list[float]] = {}
    for number, person in enumerate(people):
        subject = make_subject(person)
        for name, degrees in BINS_DEG.items():
            key = f"{'brain' if person.is_stripped else 'head'} {name} deg"
            for repeat in range(SCENES_OF_A_BIN):
                rng = np.random.default_rng([seed, number, round(degrees[0]), repeat])
                scores.setdefault(key, []).append(score_scene(subject, Pose(degrees, planes), network, rng))
    return {key: round(float(np.mean(values)), 3) for key, values in sorted(scores.items())}


def score_scene(subject: Subject, pose: Pose, network: Network, rng: np.random.Generator) -> float:
    """Return the share of 300 MR places whose nearest of 300 PET descriptors lies within 8 mm of the right place."""
    scene = make_scene(subject, rng, augment=False)
    points = spread(scene.points, rng.random(len(scene.points)), PLACES)
    pairs = draw_pairs(scene, points, pose, rng, augment=False)
    mr = network.describe(pairs.mr.numpy(), is_moving=False)
    pet = network.describe(pairs.pet.numpy(), is_moving=True)
    places_mm = pairs.places * CUBE_SPACING_MM
    chosen = (mr @ pet.T).argmax(axis=1)
    apart = distances(places_mm, places_mm)[np.arange(len(chosen)), chosen]
    return float((apart <= RIGHT_MM).mean())
