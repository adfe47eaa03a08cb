"""A very simple head of ellipsoids, in two contrasts, for tests of registration: no anatomy, but no symmetry either."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from registration.preprocess import blur
from registration.resample import Grid, resample
from registration.transforms import RigidTransform
from registration.volume import Volume

Triple = tuple[float, float, float]
Part = tuple[Triple, Triple, float, float]

# middle x, y, z and radii, LPS mm; MR and PET intensity: later ones lie over earlier ones
PARTS: list[Part] = [
    ((0, 0, 0), (76, 94, 86), 0.9, 0.12),  # scalp
    ((0, 0, 2), (70, 88, 80), 0.1, 0.02),  # skull
    ((0, 0, 3), (64, 82, 72), 0.55, 1.0),  # cortex
    ((0, 2, 4), (52, 70, 58), 0.85, 0.35),  # white matter
    ((9, -12, 8), (8, 24, 16), 0.15, 0.05),  # ventricles
    ((-9, -10, 8), (7, 27, 13), 0.15, 0.05),
    ((24, -8, -2), (8, 15, 12), 0.6, 1.1),  # nuclei
    ((-23, -6, -3), (9, 14, 11), 0.6, 1.1),
    ((6, 50, -42), (38, 25, 20), 0.6, 0.9),  # cerebellum
    ((30, -70, -56), (14, 14, 14), 0.05, 0.02),  # sinus, on one side
    ((40, 30, 30), (14, 9, 11), 0.3, 0.3),  # a lesion, on one side
]
GYRI = 60


def make_head(spacing_mm: tuple[float, float, float] = (2.0, 2.0, 2.0), *, is_pet: bool, seed: int = 0) -> Volume:
    """Make a head on its own grid, k towards S, j towards P, i towards L, origin in the middle; a seed is a person."""
    shape = tuple(int(200 / step) for step in spacing_mm)
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = spacing_mm
    affine[[2, 1, 0], 3] = [-(n - 1) / 2 * step for n, step in zip(shape, spacing_mm, strict=True)]
    affine[3, 3] = 1.0
    z, y, x = (np.arange(n) * step - (n - 1) / 2 * step for n, step in zip(shape, spacing_mm, strict=True))
    grid = (x[None, None, :], y[None, :, None], z[:, None, None])
    array = np.zeros(shape, dtype=np.float32)
    for middle, radii, mr, pet in [*make_parts(seed), *make_gyri(seed)]:
        squares = [((axis - at) / radius) ** 2 for axis, at, radius in zip(grid, middle, radii, strict=True)]
        array[squares[0] + squares[1] + squares[2] < 1] = pet if is_pet else mr
    if is_pet:
        array = blur(array, np.array(2.5) / np.array(spacing_mm))
    noise = np.random.default_rng(seed + 1).standard_normal(array.shape, dtype=np.float32)
    return Volume(np.maximum(array + 0.02 * noise, 0) * 1000, affine)


def make_parts(seed: int) -> list[Part]:
    """Return the parts as they are for person 0, and of other size and place for others, as between two real heads."""
    rng = np.random.default_rng(seed)
    varied = []
    for middle, radii, mr, pet in PARTS if seed else []:
        x, y, z = (np.array(middle) + rng.uniform(-5, 5, 3)).tolist()
        a, b, c = (np.array(radii) * rng.uniform(0.88, 1.12, 3)).tolist()
        varied.append(((x, y, z), (a, b, c), mr, pet))
    return varied or PARTS


def make_gyri(seed: int) -> list[Part]:
    """Draw small white matter blobs in the cortex, the same for both contrasts."""
    rng = np.random.default_rng(seed)
    places = rng.standard_normal((GYRI, 3))
    places *= np.array([57, 75, 65]) / np.linalg.norm(places, axis=1, keepdims=True)
    return [((x, y, z), (6, 6, 6), 0.85, 0.35) for x, y, z in places.tolist()]


def place_elsewhere(volume: Volume, fixed_from_moving: RigidTransform) -> Volume:
    """Return the volume as another scanner would have it: on its own grid, in a frame where the head lies elsewhere."""
    moved = resample(volume, Grid(volume.affine, volume.shape), fixed_from_moving.inverse())
    return Volume(moved, volume.affine)


def brain_points() -> NDArray[np.float64]:
    """Return points over the brain, (n, 3) LPS mm."""
    axis = np.arange(-60.0, 61.0, 20.0)
    points = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(-1, 3)
    return np.asarray(points[np.linalg.norm(points / [64, 82, 72], axis=1) < 1])


def error_mm(answer: RigidTransform, truth: RigidTransform) -> float:
    """Return the mean target registration error over the brain, mm."""
    points = brain_points()
    return float(np.linalg.norm(answer.apply(truth.inverse().apply(points)) - points, axis=1).mean())
