"""Cases with a known answer: a person's MR, and a PET simulated from it that lies in another patient frame.

Flow: anatomy > simulate > [cases] > evaluate | calibrate
Never: a case that depends on how many others were drawn before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.train.anatomy import Person
from models.train.simulate import draw_rotation, simulate_pet
from registration.resample import Grid, resample
from registration.transforms import RigidTransform
from registration.volume import Volume

PET_SPACING_MM = (3.0, 2.0, 2.0)  # k, j, i
PET_VIEW_MM = (168.0, 256.0, 256.0)
BRAIN_POINTS = 400
BRAIN_SHARE = 200  # of 255, grey and white together

Kind = Literal["none", "pet", "mr"]


@dataclass(frozen=True)
class CaseSet:
    """What a set of cases has in common: the range of rotation and the largest shift, and what is cut away."""

    name: str
    degrees: tuple[float, float]
    shift_mm: float
    cropped: Kind = "none"
    crop_share: float = 0.0


SETS = (
    CaseSet("up to 30 deg, 40 mm", (0, 30), 40),
    CaseSet("30-60 deg, 60 mm", (30, 60), 60),
    CaseSet("PET cropped 35 %, up to 30 deg, 40 mm", (0, 30), 40, "pet", 0.35),
)
HARD_SETS = (
    CaseSet("60-120 deg, 60 mm", (60, 120), 60),
    CaseSet("PET cropped 55 %, 20-60 deg, 40 mm", (20, 60), 40, "pet", 0.55),
    CaseSet("MR slab (65 % cropped), 10-40 deg, 40 mm", (10, 40), 40, "mr", 0.65),
)


@dataclass(frozen=True, eq=False)
class Case:
    """Two volumes, the transform that is right, and points of the brain in fixed LPS mm to judge by."""

    fixed: Volume
    moving: Volume
    fixed_from_moving: RigidTransform
    brain_mm: NDArray[np.float64]

    def tre_mm(self, answer: RigidTransform) -> float:
        """Return the mean target registration error over the brain, mm."""
        moving_mm = self.fixed_from_moving.inverse().apply(self.brain_mm)
        return float(np.linalg.norm(answer.apply(moving_mm) - self.brain_mm, axis=1).mean())


def make_case(person: Person, other: Person, kind: CaseSet, rng: np.random.Generator) -> Case:
    """Make a case; `other` gives the PET, and is `person` unless a wrong one is wanted on purpose."""
    brain = brain_points(other, rng)
    middle = brain.mean(axis=0)
    shift = rng.standard_normal(3)
    shift *= rng.uniform(0, kind.shift_mm) / np.linalg.norm(shift)
    matrix = np.eye(4)
    matrix[:3, :3] = draw_rotation(kind.degrees, rng)
    matrix[:3, 3] = middle - matrix[:3, :3] @ shift
    fixed_from_moving = RigidTransform.from_matrix(matrix)
    pet = simulate_pet(other.tissue, other.mr.affine, rng)
    moving = resample(pet, make_pet_grid(), fixed_from_moving.inverse())
    moving_volume = Volume(moving, make_pet_grid().affine)
    fixed = person.mr
    if kind.cropped == "pet":
        moving_volume = crop_ends(moving_volume, kind.crop_share, rng)
    if kind.cropped == "mr":
        fixed = crop_ends(fixed, kind.crop_share, rng)
    return Case(fixed, moving_volume, fixed_from_moving, brain)


def make_pet_grid() -> Grid:
    """Return a PET's grid round its own frame's origin: k towards S, j towards P, i towards L."""
    shape = tuple(round(view / step) for view, step in zip(PET_VIEW_MM, PET_SPACING_MM, strict=True))
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = PET_SPACING_MM
    affine[[2, 1, 0], 3] = [-(n - 1) / 2 * step for n, step in zip(shape, PET_SPACING_MM, strict=True)]
    affine[3, 3] = 1.0
    k, j, i = shape
    return Grid(affine, (k, j, i))


def brain_points(person: Person, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw points of the brain, (n, 3) fixed LPS mm."""
    brain = person.tissue[0].astype(np.int16) + person.tissue[1]
    index = np.argwhere(brain > BRAIN_SHARE)
    index = index[rng.integers(0, len(index), BRAIN_POINTS)]
    return np.asarray(index @ person.mr.affine[:3, :3].T + person.mr.affine[:3, 3])


def crop_ends(volume: Volume, share: float, rng: np.random.Generator) -> Volume:
    """Cut a share of the slices that hold signal, all at one end or some at both."""
    level = 0.2 * float(np.percentile(volume.array, 99))
    axis = int(np.argmax(np.abs(volume.affine[2, :3])))
    planes = np.moveaxis(volume.array, axis, 0)
    held = np.flatnonzero((planes > level).reshape(len(planes), -1).mean(axis=1) > 0.01)
    first, last = int(held[0]), int(held[-1]) + 1
    low = round((last - first) * share * rng.choice([0.0, 0.5, 1.0]))
    high = round((last - first) * share) - low
    start = first + low if low else 0
    stop = last - high if high else len(planes)
    affine = volume.affine.copy()
    affine[:3, 3] += volume.affine[:3, axis] * start
    return Volume(np.ascontiguousarray(np.moveaxis(planes[start:stop], 0, axis)), affine)
