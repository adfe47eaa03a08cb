"""The runs behind the confidence: one registration each, of the right PET or of one that must not be accepted.

Flow: anatomy > cases > registration > [runs] > calibrate
Never: a person the network was trained on; a run that depends on those before it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.train.anatomy import Person, load_people, split_people
from models.train.cases import HARD_SETS, SETS, Case, make_case
from models.train.records import make_version
from models.train.simulate import draw_rotation, smooth_noise
from registration import confidence
from registration.descriptors import Network
from registration.errors import RegistrationError
from registration.evidence import gather
from registration.pipeline import register, search_at_first
from registration.preprocess import prepare_fixed, prepare_moving
from registration.problem import pose_problem
from registration.profiles import DEFAULT
from registration.search import centre_start, polish
from registration.transforms import RigidTransform
from registration.volume import Volume

HERE = Path(__file__).resolve().parent
REGISTRATION = HERE.parents[1] / "registration"
OTHER_HEAD = "other head"
MIRRORED = "mirrored"  # a head is nearly symmetric: told apart in the tables, and left out of the fit
WRONG_TOP = "searched far off"  # the right PET; where the search does not come near, a wrong top
PHANTOM, BLOBS, TORSO = "phantom", "blobs", "another part of the body"
BAD_KINDS = (
    *(OTHER_HEAD, WRONG_TOP, OTHER_HEAD, MIRRORED, OTHER_HEAD, WRONG_TOP, PHANTOM, TORSO),
    *(OTHER_HEAD, WRONG_TOP, OTHER_HEAD, MIRRORED, OTHER_HEAD, WRONG_TOP, BLOBS, TORSO),
)
FAR_OFF_DEG = (50.0, 130.0)
CASE_KINDS = (*SETS, *SETS, *HARD_SETS)


def find_version(people: Sequence[str]) -> str:
    """Return a checksum of what a run depends on: the network, how it is used, who the people are, how cases are made.

    Of `confidence` only when doubt makes it search on: its coefficients and levels judge what was measured.
    """
    doubt = {name: value for name, value in sorted(vars(confidence).items()) if name.startswith("DOUBT_")}
    registration = [path for path in sorted(REGISTRATION.glob("*.py")) if path.name != "confidence.py"]
    files = (*registration, *(HERE / name for name in ("anatomy.py", "cases.py", "runs.py", "simulate.py")))
    used = Network.load(device="cpu").sha256 + json.dumps(doubt)
    return make_version([used.encode(), *(name.encode() for name in people), *(path.read_bytes() for path in files)])


def make_numbered(data: Path, cache: Path, number: int) -> dict[str, Any]:
    """Make the run of this number with the held-out people below a folder."""
    return make_run(number, *_equip(data, cache))


@functools.lru_cache(maxsize=1)
def _equip(data: Path, cache: Path) -> tuple[Sequence[Person], Network]:
    """Load the held-out people and the network, once a process."""
    everybody = load_people(data, cache)
    return [everybody[name] for name in split_people(list(everybody))[1]], Network.load(device="cpu", threads=1)


def make_run(number: int, people: Sequence[Person], network: Network) -> dict[str, Any]:
    """Register one case: even numbers the right PET, odd ones something that must not be accepted."""
    rng = np.random.default_rng([7, number])
    at = int(rng.integers(len(people)))
    person = people[at]
    kind = CASE_KINDS[int(rng.integers(len(CASE_KINDS)))]
    bad = None if number % 2 == 0 else BAD_KINDS[(number // 2) % len(BAD_KINDS)]
    other = people[(at + 1 + int(rng.integers(len(people) - 1))) % len(people)] if bad == OTHER_HEAD else person
    case = spoil(make_case(person, other, kind, rng), bad, rng)
    run: dict[str, Any] = {"person": person.name, "kind": bad or kind.name}
    try:
        found, metrics = search_far_off(case, network, rng) if bad == WRONG_TOP else search(case, network)
    except RegistrationError as error:
        return {**run, "tre_mm": None, "error": type(error).__name__, "metrics": {}}
    tre_mm = round(case.tre_mm(found), 3) if bad in (None, WRONG_TOP) else None
    return {**run, "tre_mm": tre_mm, "metrics": {name: round(value, 4) for name, value in metrics.items()}}


def search(case: Case, network: Network) -> tuple[RigidTransform, Mapping[str, float]]:
    """Register a case as the node does."""
    registration = register(case.fixed, case.moving, network)
    return registration.fixed_from_moving, registration.metrics


def search_far_off(
    case: Case, network: Network, rng: np.random.Generator
) -> tuple[RigidTransform, Mapping[str, float]]:
    """Search as the node does at first, but from starts turned far off: most end on a wrong top."""
    prepared = prepare_fixed(case.fixed), prepare_moving(case.moving)
    problem = pose_problem(prepared, network, DEFAULT, seed=0)
    turn = RigidTransform.about(problem.centre_mm, draw_rotation(FAR_OFF_DEG, rng), np.zeros(3))
    start = turn @ centre_start(*prepared)
    rough, features = search_at_first(problem, start)
    best = polish(problem, rough)
    return best.fixed_from_moving, gather(problem, best, rough, features, features.look).metrics


def spoil(case: Case, bad: str | None, rng: np.random.Generator) -> Case:
    """Turn a case's PET into one that belongs to no answer."""
    array = case.moving.array
    if bad == MIRRORED:
        array = np.ascontiguousarray(array[:, :, ::-1])
    elif bad == PHANTOM:
        array = make_phantom(case.moving, rng)
    elif bad == TORSO:
        array = make_torso(case.moving, rng)
    elif bad == BLOBS:
        noise = smooth_noise(case.moving.shape, int(rng.integers(5, 14)), rng)
        array = np.maximum(noise, 0) * np.float32(1000)
    else:
        return case
    return Case(case.fixed, Volume(array, case.moving.affine), case.fixed_from_moving, case.brain_mm)


def make_phantom(grid: Volume, rng: np.random.Generator) -> NDArray[np.float32]:
    """Make a cylinder of uniform uptake with cold and hot rods, somewhat noisy."""
    k, j, i = np.indices(grid.shape).reshape(3, -1)
    x, y, z = (grid.affine[:3, :3] @ np.stack([k, j, i]) + grid.affine[:3, 3:] - grid.centre_mm[:, None]).reshape(
        3, *grid.shape
    )
    inside = (x**2 + y**2 < rng.uniform(80, 105) ** 2) & (np.abs(z) < rng.uniform(60, 90))
    array = inside * 1.0
    for angle in np.arange(6) * np.pi / 3 + rng.uniform(0, 1):
        rod = (x - 50 * np.cos(angle)) ** 2 + (y - 50 * np.sin(angle)) ** 2 < rng.uniform(6, 18) ** 2
        array[rod & inside] = rng.choice([0.0, 0.3, 4.0])
    noisy = array + 0.05 * rng.standard_normal(grid.shape) * np.sqrt(array + 0.02)
    return np.asarray(np.maximum(noisy, 0) * 1000, dtype=np.float32)


def make_torso(grid: Volume, rng: np.random.Generator) -> NDArray[np.float32]:
    """Make a chest: soft tissue with cold lungs, a hot heart, a warm liver and a spine, somewhat noisy."""
    k, j, i = np.indices(grid.shape).reshape(3, -1)
    points = grid.affine[:3, :3] @ np.stack([k, j, i]) + grid.affine[:3, 3:] - grid.centre_mm[:, None]

    def inside(middle_mm: Sequence[float], half_mm: Sequence[float]) -> NDArray[np.bool_]:
        scale = rng.uniform(0.85, 1.15) * np.array(half_mm)
        apart = (points - np.array(middle_mm)[:, None]) / scale[:, None]
        return np.asarray(((apart**2).sum(axis=0) < 1).reshape(grid.shape))

    array = np.where(inside((0, 0, 0), (120, 85, 400)), 1.0, 0.0)
    for middle_mm, half_mm, uptake in (
        ((60, -5, 30), (38, 55, 110), 0.25),
        ((-60, -5, 30), (38, 55, 110), 0.25),
        ((25, -35, -10), (38, 32, 40), rng.uniform(2, 6)),
        ((-45, -15, -90), (70, 60, 45), rng.uniform(1.5, 2.5)),
        ((0, 60, 0), (16, 16, 400), 1.4),
    ):
        array[inside(middle_mm, half_mm)] = uptake
    noisy = array + 0.05 * rng.standard_normal(grid.shape) * np.sqrt(array + 0.02)
    return np.asarray(np.maximum(noisy, 0) * 1000, dtype=np.float32)
