"""Cases with a known answer: a person's MR, and a PET simulated from it that lies in another patient frame.

Flow: anatomy > simulate > [cases] > calibrate | benchmarks
Never: a case that depends on how many others were drawn before it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.train.anatomy import Person
from models.train.simulate import (
    ATROPHY,
    Scanner,
    Tracer,
    draw_rotation,
    make_uptake,
    scan,
    simulate_pet,
    thin_cortex,
)
from registration.preprocess import blur
from registration.resample import Grid, resample
from registration.transforms import RigidTransform, rotation_about
from registration.volume import Volume, spacing_of

PET_SPACING_MM = (3.0, 2.0, 2.0)  # k, j, i
PET_VIEW_MM = (168.0, 256.0, 256.0)
PET_SHIFT_IN_VIEW_MM = 60.0  # a head lies no further off the view's middle; beyond, the bed moves and the view with it
ATROPHY_SHARE = 0.25  # of the cases
BRAIN_POINTS = 400
BRAIN_SHARE = 200  # of 255, grey and white together
STRIPPED_SHARE, STRIPPED_SIGMA_MM = 0.3, 2.0  # what is brain or fluid by less than this, smoothed, is cut away

Kind = Literal["none", "pet", "mr"]
Range = tuple[float, float]


@dataclass(frozen=True)
class Contrast:
    """How images of one kind of tracer look: what `Tracer` and `Scanner` are drawn from."""

    grey: Range
    white: Range
    fluid: Range
    soft: Range
    fwhm_mm: Range = (4.5, 7.0)
    noise: Range = (0.03, 0.10)

    def draw(self, rng: np.random.Generator) -> tuple[Tracer, Scanner]:
        """Draw one tracer and the scanner that sees it."""
        grey, white, fluid, soft, fwhm_mm, noise = (
            rng.uniform(*limits) for limits in (self.grey, self.white, self.fluid, self.soft, self.fwhm_mm, self.noise)
        )
        return Tracer(grey, white, fluid, soft), Scanner(fwhm_mm, noise)


FDG = Contrast(grey=(1, 1), white=(0.22, 0.5), fluid=(0.02, 0.15), soft=(0.04, 0.35))
LOW_COUNTS = replace(FDG, noise=(0.20, 0.30))
AMYLOID_NEGATIVE = Contrast(grey=(0.45, 0.75), white=(1, 1), fluid=(0.02, 0.15), soft=(0.04, 0.35))
WATER = Contrast(  # O-15: short scans of a tracer that follows the blood
    grey=(1, 1), white=(0.3, 0.5), fluid=(0.05, 0.2), soft=(0.1, 0.4), fwhm_mm=(6, 8), noise=(0.08, 0.15)
)
HMPAO = Contrast(  # a gamma camera's resolution, and much scalp
    grey=(1, 1), white=(0.45, 0.65), fluid=(0.1, 0.25), soft=(0.25, 0.6), fwhm_mm=(8, 10), noise=(0.05, 0.10)
)


@dataclass(frozen=True)
class CaseSet:
    """What the cases of a set have in common.

    Attributes
    ----------
    name : str
        Its checksum seeds the set's draws.
    degrees : (float, float)
        Rotation about a random axis, from and to.
    shift_mm : (float, float)
        Distance of the brain from the PET frame's origin, from and to.
    cropped : "none", "pet" or "mr"
        What loses slices that hold signal.
    crop_share : float
    contrasts : tuple of Contrast
        One is drawn for each case; without, tracer and scanner are as in training.
    mr_slice_mm : float
        Thickness of the MR's slices across the head's long axis; 0 leaves them as they are.
    is_pet_stripped : bool
        Whether the PET ends at the brain, where the MR has a scalp.
    turns_deg : tuple of float
        One of these about an axis of the body comes on top: a head that lay otherwise than its header says.
    is_other_person : bool
        Whether the PET is another person's, so that no answer is right.
    """

    name: str
    degrees: Range
    shift_mm: Range
    cropped: Kind = "none"
    crop_share: float = 0.0
    contrasts: tuple[Contrast, ...] = ()
    mr_slice_mm: float = 0.0
    is_pet_stripped: bool = False
    turns_deg: tuple[float, ...] = ()
    is_other_person: bool = False


SETS = (
    CaseSet("up to 30 deg, 40 mm", (0, 30), (0, 40)),
    CaseSet("30-60 deg, 60 mm", (30, 60), (0, 60)),
    CaseSet("PET cropped 35 %, up to 30 deg, 40 mm", (0, 30), (0, 40), "pet", 0.35),
    CaseSet("MR cropped 35 %, up to 30 deg, 40 mm", (0, 30), (0, 40), "mr", 0.35),
    CaseSet("up to 60 deg, 40-80 mm", (0, 60), (40, 80)),
    CaseSet("up to 30 deg, 80-150 mm", (0, 30), (80, 150)),
    CaseSet("low counts (noise 20-30 %), up to 30 deg, 40 mm", (0, 30), (0, 40), contrasts=(LOW_COUNTS,)),
    CaseSet("MR slices of 5 mm, up to 30 deg, 40 mm", (0, 30), (0, 40), mr_slice_mm=5.0),
    CaseSet(
        "amyloid-negative, water or HMPAO, up to 30 deg, 40 mm",
        (0, 30),
        (0, 40),
        contrasts=(AMYLOID_NEGATIVE, WATER, HMPAO),
    ),
    CaseSet("PET without scalp, up to 30 deg, 40 mm", (0, 30), (0, 40), is_pet_stripped=True),
)
HARD_SETS = (
    CaseSet("60-120 deg, 60 mm", (60, 120), (0, 60)),
    CaseSet("120-180 deg, 60 mm", (120, 180), (0, 60)),
    CaseSet("PET cropped 55 %, 20-60 deg, 40 mm", (20, 60), (0, 40), "pet", 0.55),
    CaseSet("MR slab (65 % cropped), 10-40 deg, 40 mm", (10, 40), (0, 40), "mr", 0.65),
    CaseSet("another position: 90 or 180 deg and up to 15, 40 mm", (0, 15), (0, 40), turns_deg=(90, 180)),
)
WRONG_SETS = (CaseSet("another person's PET, up to 30 deg, 40 mm", (0, 30), (0, 40), is_other_person=True),)


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


def seed_of(kind: CaseSet, number: int) -> list[int]:
    """Return the seed of a set's case of this number: the same whatever other sets there are."""
    return [zlib.crc32(kind.name.encode()), number]


def make_case(person: Person, other: Person, kind: CaseSet, rng: np.random.Generator) -> Case:
    """Make a case; `other` gives the PET, and is `person` unless a wrong one is wanted on purpose."""
    if rng.random() < ATROPHY_SHARE:
        share, is_own = rng.uniform(*ATROPHY), other is person
        other = wear_thin(other, share)
        person = other if is_own else wear_thin(person, share)
    brain = brain_points(other, rng)
    middle = brain.mean(axis=0)
    shift = rng.standard_normal(3)
    shift *= rng.uniform(*kind.shift_mm) / np.linalg.norm(shift)
    matrix = np.eye(4)
    matrix[:3, :3] = draw_turn(kind, rng)
    matrix[:3, 3] = middle - matrix[:3, :3] @ shift
    fixed_from_moving = RigidTransform.from_matrix(matrix)
    grid = make_pet_grid(shift * max(0.0, 1 - PET_SHIFT_IN_VIEW_MM / float(np.linalg.norm(shift))))
    moving = Volume(resample(make_pet(other, kind, rng), grid, fixed_from_moving.inverse()), grid.affine)
    fixed = person.mr
    if kind.cropped == "pet":
        moving = crop_ends(moving, kind.crop_share, rng)
    if kind.cropped == "mr":
        fixed = crop_ends(fixed, kind.crop_share, rng)
    if kind.mr_slice_mm:
        fixed = thicken(fixed, kind.mr_slice_mm)
    return Case(fixed, moving, fixed_from_moving, brain)


def wear_thin(person: Person, share: float) -> Person:
    """Return a person with atrophy, in the MR and so in every PET made of them."""
    mr, tissue = thin_cortex(person.mr.array, person.tissue, person.mr.spacing_mm, share)
    return replace(person, mr=Volume(mr, person.mr.affine), tissue=tissue)


def draw_turn(kind: CaseSet, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw a set's (3, 3) rotation."""
    rotation = draw_rotation(kind.degrees, rng)
    if not kind.turns_deg:
        return rotation
    turn = np.zeros(3)
    turn[rng.integers(3)] = np.radians(rng.choice(kind.turns_deg))
    return np.asarray(rotation @ rotation_about(turn))


def make_pet(person: Person, kind: CaseSet, rng: np.random.Generator) -> Volume:
    """Simulate a person's PET as the set wants it, on the grid of the MR."""
    affine = person.mr.affine
    if kind.contrasts:
        tracer, scanner = kind.contrasts[int(rng.integers(len(kind.contrasts)))].draw(rng)
        uptake = make_uptake(person.tissue, spacing_of(affine), tracer, rng)
        pet = Volume(scan(uptake, spacing_of(affine), scanner, rng), affine)
    else:
        pet = simulate_pet(person.tissue, affine, rng)
    if not kind.is_pet_stripped:
        return pet
    inside = person.tissue[:3].sum(axis=0, dtype=np.float32) / np.float32(255)
    return Volume(pet.array * (blur(inside, STRIPPED_SIGMA_MM / spacing_of(affine)) > STRIPPED_SHARE), affine)


def make_pet_grid(centre_mm: NDArray[np.float64]) -> Grid:
    """Return a PET's grid round a point of its frame, LPS mm: k towards S, j towards P, i towards L."""
    shape = tuple(round(view / step) for view, step in zip(PET_VIEW_MM, PET_SPACING_MM, strict=True))
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = PET_SPACING_MM
    affine[[2, 1, 0], 3] = [-(n - 1) / 2 * step for n, step in zip(shape, PET_SPACING_MM, strict=True)]
    affine[:3, 3] += centre_mm
    affine[3, 3] = 1.0
    k, j, i = shape
    return Grid(affine, (k, j, i))


def brain_points(person: Person, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw points of the brain, (n, 3) fixed LPS mm."""
    brain = person.tissue[0].astype(np.int16) + person.tissue[1]
    index = np.argwhere(brain > BRAIN_SHARE)
    index = index[rng.integers(0, len(index), BRAIN_POINTS)]
    return np.asarray(index @ person.mr.affine[:3, :3].T + person.mr.affine[:3, 3])


def long_axis(volume: Volume) -> int:
    """Return the array axis that runs along the body."""
    return int(np.argmax(np.abs(volume.affine[2, :3]) / volume.spacing_mm))


def thicken(volume: Volume, slice_mm: float) -> Volume:
    """Average whole slices along the body together until they are as near this thickness as they can be."""
    axis = long_axis(volume)
    count = max(1, round(slice_mm / float(volume.spacing_mm[axis])))
    planes = np.moveaxis(volume.array, axis, 0)
    planes = planes[: len(planes) // count * count]
    thick = planes.reshape(-1, count, *planes.shape[1:]).mean(axis=1)
    affine = volume.affine.copy()
    affine[:3, 3] += volume.affine[:3, axis] * (count - 1) / 2
    affine[:3, axis] *= count
    return Volume(np.ascontiguousarray(np.moveaxis(thick, 0, axis)), affine)


def crop_ends(volume: Volume, share: float, rng: np.random.Generator) -> Volume:
    """Cut a share of the slices that hold signal, all at one end or some at both."""
    level = 0.2 * float(np.percentile(volume.array, 99))
    axis = long_axis(volume)
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
