"""Training samples: paired patches of an MR and of a PET simulated from it, each pair of draws in new poses.

Flow: anatomy > simulate > [samples] > training | scoring
Never: a pair from two people; a contrast that registration's own preprocessing would not give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.train.anatomy import Person
from models.train.cutting import cut_turned, stack_slices
from models.train.simulate import (
    ATROPHY,
    draw_pet_grid,
    draw_rotation,
    simulate_pet,
    smooth_noise,
    take_on,
    thin_cortex,
)
from registration.preprocess import (
    CUBE_VOXELS,
    blur,
    make_cube,
    make_cube_grid,
    normalise,
    prepare_fixed,
    prepare_moving,
    smooth,
)
from registration.resample import Grid, make_spline, sample_grid
from registration.transforms import RigidTransform
from registration.volume import Volume, spacing_of

JITTER_VOXELS = 0.75  # 1.5 mm: a candidate in the PET never lies exactly where the MR's key point does
COMMON_TILT_DEG = (0.0, 20.0)
POOL = 16  # scenes to choose from at any time
CANDIDATES = 6000
SHARE_KEPT_OUTSIDE = 0.3  # of points that are head but not brain
AMYLOID_SHARE, ATROPHY_SHARE, CUT_MR_SHARE = 0.3, 0.3, 0.2  # of the scenes trained on: these are the harder ones
OWN_VOXELS_SHARE = 0.5  # of the scenes trained on, and all that are scored; the rest are seen on the working grid
LEAST_POINTS = 400  # of a scene: where both views are cut, little may be in both
LEAST_LEFT = 0.35  # of the head's height in an MR that is cut
SHARE_OF_A_DRAW = (0.15, 0.8)  # of a scene's points, those nearest to one of them, that a draw chooses from
STRETCH, SHEAR = 0.05, 0.03  # spread of how much longer an axis is, and how far it leans, in a shape
TURNS_OF_A_DRAW = 8  # poses among the pairs of one draw: a batch learns from many at once


@dataclass(frozen=True, eq=False)
class Subject:
    """A person on the 2 mm working grid.

    Attributes
    ----------
    name : str
    mr : (128, 128, 128) float32, as registration normalises it
    foreground : (128, 128, 128) bool
    tissue : (4, 128, 128, 128) uint8, as `Person.tissue`
    grid : Grid
    """

    name: str
    mr: NDArray[np.float32]
    foreground: NDArray[np.bool_]
    tissue: NDArray[np.uint8]
    grid: Grid


@dataclass(frozen=True, eq=False)
class Scene:
    """An MR and a PET that lie on one another, each from `stack_slices`, and points worth describing, in voxels."""

    mr: NDArray[np.float32]
    pet: NDArray[np.float32]
    points: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Patches (n, 3, 64, 64) of MR and PET, and their places (n, 3) in MR voxels."""

    mr: NDArray[np.float32]
    pet: NDArray[np.float32]
    places: NDArray[np.float64]


def make_subject(person: Person) -> Subject:
    """Bring a person down to 2 mm, the way registration does."""
    prepared = prepare_fixed(person.mr)
    grid = make_cube_grid(prepared.centre_mm)
    cube = make_cube(prepared, grid, RigidTransform.identity())
    layers = [
        sample_grid(make_spline(smooth(Volume(layer, person.mr.affine), 2.0)), grid, RigidTransform.identity())
        for layer in person.tissue
    ]
    tissue = np.rint(np.clip(layers, 0, 255)).astype(np.uint8)
    return Subject(person.name, cube.array, cube.foreground, tissue, grid)


def make_generic_subject(rng: np.random.Generator) -> Subject:
    """Make a subject that is no anatomy: nested random shapes with four textures, for the first phase."""
    shape = (CUBE_VOXELS, CUBE_VOXELS, CUBE_VOXELS)
    axis = np.linspace(-1.3, 1.3, CUBE_VOXELS, dtype=np.float32)
    distance = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2)
    ball = distance + 0.1 * smooth_noise(shape, 5, rng) < 1
    chosen = np.stack([smooth_noise(shape, int(rng.integers(8, 24)), rng) for _ in range(4)]).argmax(axis=0)
    tissue = np.stack([(chosen == n) & ball for n in range(4)]).astype(np.uint8) * 255
    levels = rng.uniform(0.2, 1.0, 4).astype(np.float32)
    mr = blur((levels[chosen] * ball).astype(np.float32), np.full(3, 1.0))
    return Subject("generic", normalise(mr, float(levels.max())), ball, tissue, make_cube_grid(np.zeros(3)))


def make_scene(subject: Subject, rng: np.random.Generator, *, augment: bool) -> Scene:
    """Simulate a PET of one subject, and vary both volumes if asked."""
    mr, tissue, affine = subject.mr, subject.tissue, subject.grid.affine
    if augment and rng.random() < ATROPHY_SHARE:
        mr, tissue = thin_cortex(mr, tissue, spacing_of(affine), rng.uniform(*ATROPHY))
    share = {"amyloid_share": AMYLOID_SHARE} if augment else {}
    pet = simulate_pet(tissue, affine, rng, **share)
    if augment and rng.random() >= OWN_VOXELS_SHARE:
        prepared = prepare_moving(pet)
        seen = normalise(prepared.volume.array, prepared.bright)
    else:
        prepared = prepare_moving(take_on(pet, draw_pet_grid(pet.centre_mm, rng)))
        seen = make_cube(prepared, subject.grid, RigidTransform.identity()).array
    if augment:
        mr, seen = vary_mr(mr, rng), cut_pet(vary(seen, rng), subject.foreground, rng)
        if rng.random() < CUT_MR_SHARE:
            mr = cut_mr(mr, subject.foreground, rng)
    points = choose_points(subject, rng)
    at = tuple(points.T)
    shown = points[(seen[at] > 0) & (mr[at] > 0)]
    if len(shown) < LEAST_POINTS:
        return make_scene(subject, rng, augment=augment)
    return Scene(stack_slices(mr), stack_slices(seen), shown)


def cut_pet(array: NDArray[np.float32], foreground: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float32]:
    """Cut a PET's view: often some of the head's lower end, now and then of its upper one."""
    low = rng.uniform(0, 0.35) if rng.random() < 0.6 else 0.0
    high = rng.uniform(0, 0.25) if rng.random() < 0.3 else 0.0
    return cut_ends(array, foreground, low, high)


def cut_mr(array: NDArray[np.float32], foreground: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float32]:
    """Cut an MR to a slab: what is lost lies at one end of the head, or half at each."""
    lost = rng.uniform(0, 1 - LEAST_LEFT)
    low = lost * rng.choice([0.0, 0.5, 1.0])
    return cut_ends(array, foreground, low, lost - low)


def cut_ends(array: NDArray[np.float32], foreground: NDArray[np.bool_], low: float, high: float) -> NDArray[np.float32]:
    """Cut these shares of the head's height, and what lies beyond, off a volume's ends."""
    held = np.flatnonzero(foreground.any(axis=(1, 2)))
    cut = array.copy()
    if first := round(len(held) * low):
        cut[: held[0] + first] = 0
    if last := round(len(held) * high):
        cut[held[-1] + 1 - last :] = 0
    return cut


def vary(array: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Vary contrast and level."""
    return np.asarray(np.clip(array ** np.float32(rng.uniform(0.8, 1.25)) * np.float32(rng.uniform(0.9, 1.1)), 0, 1))


def vary_mr(array: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Vary the MR: a smooth coil bias, contrast, level, a little noise."""
    bias = smooth_noise((CUBE_VOXELS,) * 3, 4, rng) * np.float32(rng.uniform(0, 0.15)) + np.float32(1)
    noise = rng.standard_normal(array.shape, dtype=np.float32) * np.float32(rng.uniform(0, 0.02))
    return vary(np.clip(array * bias + noise, 0, 1), rng)


def choose_points(subject: Subject, rng: np.random.Generator) -> NDArray[np.int64]:
    """Choose voxels with structure, (n, 3) int64: mostly of the brain, some of the rest of the head."""
    index = np.argwhere(subject.foreground)
    index = np.clip(index[rng.integers(0, len(index), CANDIDATES)], 1, CUBE_VOXELS - 2)
    k, j, i = index.T
    mr = subject.mr
    steep = np.abs(mr[k + 1, j, i] - mr[k - 1, j, i])
    steep += np.abs(mr[k, j + 1, i] - mr[k, j - 1, i]) + np.abs(mr[k, j, i + 1] - mr[k, j, i - 1])
    in_brain = subject.tissue[:3, k, j, i].sum(axis=0, dtype=np.int64) > 60
    wanted = (steep > np.median(steep)) & (in_brain | (rng.random(len(index)) < SHARE_KEPT_OUTSIDE))
    return np.asarray(index[wanted], dtype=np.int64)


@dataclass(frozen=True)
class Pose:
    """How pairs are cut: the range the PET is turned by against the MR, and the planes, as `Profile.planes`."""

    degrees: tuple[float, float]
    planes: tuple[int, ...]


def choose_near(points: NDArray[np.int64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Choose `count` of the points, mostly from one part of the head: neighbours are what is hard to tell apart."""
    nearest = np.argsort(((points - points[rng.integers(len(points))]) ** 2).sum(axis=1))
    near = nearest[: max(count, round(len(points) * rng.uniform(*SHARE_OF_A_DRAW)))]
    return np.asarray(points[rng.choice(near, count, replace=False)])


def draw_shape(rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw a (3, 3) matrix that makes a head another one: wider or longer, a little sheared, every second mirrored."""
    stretched = np.diag(np.exp(rng.normal(0, STRETCH, 3))) @ (np.eye(3) + np.triu(rng.normal(0, SHEAR, (3, 3)), 1))
    return stretched @ np.diag([1, 1, rng.choice([-1.0, 1.0])])


def draw_pairs(
    scene: Scene, points: NDArray[np.int64], pose: Pose, rng: np.random.Generator, *, augment: bool
) -> Pairs:
    """Cut patches round points in newly drawn poses: one for all, or `TURNS_OF_A_DRAW` if varied, each of its shape."""
    count = TURNS_OF_A_DRAW if augment else 1
    shapes = np.stack([draw_shape(rng) if augment else np.eye(3) for _ in range(count)])
    tilts = np.stack([draw_rotation(COMMON_TILT_DEG, rng) if augment else np.eye(3) for _ in range(count)])
    turns = np.stack([draw_rotation(pose.degrees, rng) for _ in range(count)])
    places = points.astype(np.float64)
    landed = places + rng.standard_normal(places.shape) * (JITTER_VOXELS if augment else 0.25)
    mr = cut_turned(scene.mr, places, shapes @ tilts.transpose(0, 2, 1), pose.planes)
    pet = cut_turned(scene.pet, landed, shapes @ (turns @ tilts).transpose(0, 2, 1), pose.planes)
    return Pairs(mr, pet, places)


class SceneStream:
    """A number of scenes of changing subjects, made one after another while so many draws ask for one.

    At any time a draw has the last few to choose from.
    """

    def __init__(self, subjects: Sequence[Subject], scenes: int, draws: int, seed: int) -> None:
        self._subjects = subjects
        self._rng = np.random.default_rng(seed)
        self._scenes, self._draws = scenes, draws
        self._made = self._drawn = 0
        self._pool: list[Scene] = []

    def next_scene(self) -> Scene:
        """Return any scene of the pool."""
        self._drawn += 1
        while self._made < max(min(POOL, self._scenes), self._drawn * self._scenes // self._draws):
            self._pool = [*self._pool[-POOL + 1 :], self._make()]
            self._made += 1
        return self._pool[int(self._rng.integers(len(self._pool)))]

    def _make(self) -> Scene:
        subject = self._subjects[int(self._rng.integers(len(self._subjects)))]
        return make_scene(subject, self._rng, augment=True)
