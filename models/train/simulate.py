"""PET made from tissue: atrophy, uptake, lesions, point spread, noise and voxels, all drawn at random.

Flow: anatomy > [simulate] > samples | cases
Never: a real PET. What the edges of a real one lack or add against its MR is not in here, so figures are optimistic.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from registration.preprocess import SIGMA_PER_FWHM, blur
from registration.resample import Grid, resample
from registration.transforms import RigidTransform
from registration.volume import Volume, spacing_of

ATROPHY_MM = 4.0  # sigma of how far from fluid cortex is lost
ATROPHY = (0.2, 0.7)  # share of the cortex beside fluid that is lost
SLICE_MM, PIXEL_MM = (2.0, 5.0), (1.5, 4.0)  # of a PET's voxels
VIEW_MM = (256.0, 256.0, 256.0)  # k, j, i
BOX_SIGMA = 12**-0.5  # of a uniform distribution one wide: a voxel holds the mean over its extent


@dataclass(frozen=True)
class Tracer:
    """Uptake of grey matter, white matter, fluid and other soft tissue, relative to one another."""

    grey: float
    white: float
    fluid: float
    soft: float


@dataclass(frozen=True)
class Scanner:
    """How a PET sees: point spread (FWHM, mm) and noise as a share of the grey matter's uptake."""

    fwhm_mm: float
    noise: float


def draw_tracer(rng: np.random.Generator, amyloid_share: float) -> Tracer:
    """Draw a tracer: FDG-like, or with this probability one with the white matter above the grey (amyloid-negative)."""
    fluid, soft = rng.uniform(0.02, 0.15), rng.uniform(0.04, 0.35)
    if rng.random() < amyloid_share:
        return Tracer(rng.uniform(0.45, 0.75), 1.0, fluid, soft)
    return Tracer(1.0, rng.uniform(0.22, 0.5), fluid, soft)


def draw_scanner(rng: np.random.Generator) -> Scanner:
    """Draw a scanner."""
    return Scanner(rng.uniform(4.5, 7.0), rng.uniform(0.03, 0.10))


def thin_cortex(
    mr: NDArray[np.float32], tissue: NDArray[np.uint8], spacing_mm: NDArray[np.float64], share: float
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Turn this share of the grey matter beside fluid into fluid, in an MR (k, j, i) and in its tissue: atrophy."""
    beside = np.minimum(2 * blur(tissue[2].astype(np.float32), ATROPHY_MM / spacing_mm), 255) / np.float32(255)
    thinned = tissue.copy()
    thinned[0] = np.rint(tissue[0] * (1 - np.float32(share) * beside))
    lost = tissue[0] - thinned[0]
    thinned[2] += lost
    grey, fluid = (float(np.average(mr, weights=tissue[at])) for at in (0, 2))
    darker = np.float32(max(0.0, 1 - fluid / grey) / 255)
    return np.asarray(mr * (1 - lost * darker), dtype=np.float32), thinned


def make_uptake(
    tissue: NDArray[np.uint8], spacing_mm: NDArray[np.float64], tracer: Tracer, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Make a map of uptake before the scanner.

    Parameters
    ----------
    tissue : (4, k, j, i) uint8
        As `Person.tissue`.
    spacing_mm : (3,) float64
    tracer : Tracer
    rng : numpy.random.Generator
        Draws the regional differences, hot and cold spots.

    Returns
    -------
    (k, j, i) float32
    """
    k, j, i = tissue.shape[1:]
    grey, white, fluid, soft = (
        np.float32(level / 255) for level in (tracer.grey, tracer.white, tracer.fluid, tracer.soft)
    )
    brain = tissue[0] * grey + tissue[1] * white
    brain *= smooth_noise((k, j, i), 5, rng) * np.float32(rng.uniform(0.03, 0.15)) + np.float32(1)
    uptake = brain + tissue[2] * fluid
    uptake += tissue[3] * soft * (smooth_noise((k, j, i), 9, rng) * np.float32(0.3) + np.float32(1))
    for _ in range(rng.integers(0, 5)):
        _add_spot(uptake, spacing_mm, rng)
    return np.asarray(uptake, dtype=np.float32)


def _add_spot(uptake: NDArray[np.float32], spacing_mm: NDArray[np.float64], rng: np.random.Generator) -> None:
    """Raise or lower the uptake round one random point, in place: a lesion, an infarct, an active region."""
    middle = rng.uniform(0.25, 0.75, 3) * uptake.shape
    radius_mm = rng.uniform(5, 20)
    axes = [
        np.exp(-0.5 * ((np.arange(n) - at) * step / radius_mm) ** 2).astype(np.float32)
        for n, at, step in zip(uptake.shape, middle, spacing_mm, strict=True)
    ]
    factor = np.float32(rng.uniform(-0.6, 0.6))
    uptake *= 1 + factor * axes[0][:, None, None] * axes[1][None, :, None] * axes[2][None, None, :]


def scan(
    uptake: NDArray[np.float32], spacing_mm: NDArray[np.float64], scanner: Scanner, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Blur by the point spread and add noise that grows with the square root of the signal; never below 0."""
    seen = blur(uptake, scanner.fwhm_mm * SIGMA_PER_FWHM / spacing_mm)
    noise = rng.standard_normal(uptake.shape, dtype=np.float32)
    noise = blur(noise, 4.0 * SIGMA_PER_FWHM / spacing_mm)
    noise *= np.float32(scanner.noise) / max(float(noise[::4, ::4, ::4].std()), 1e-6)
    return np.asarray(np.maximum(seen + noise * np.sqrt(np.maximum(seen, 0) + np.float32(0.02)), 0), dtype=np.float32)


def smooth_noise(shape: tuple[int, int, int], knots: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw a smooth field of about unit spread with `knots` free values along each axis."""
    field = rng.standard_normal((knots, knots, knots), dtype=np.float32)
    k, j, i = shape
    planes = np.stack([cv2.resize(plane, (i, j), interpolation=cv2.INTER_CUBIC) for plane in field])
    stretched = cv2.resize(planes.reshape(knots, j * i), (j * i, k), interpolation=cv2.INTER_CUBIC)
    return np.asarray(stretched, dtype=np.float32).reshape(k, j, i)


def simulate_pet(
    tissue: NDArray[np.uint8], affine: NDArray[np.float64], rng: np.random.Generator, *, amyloid_share: float = 1 / 6
) -> Volume:
    """Simulate one PET of a person on the grid the tissue lies on."""
    spacing_mm = spacing_of(affine)
    uptake = make_uptake(tissue, spacing_mm, draw_tracer(rng, amyloid_share), rng)
    return Volume(scan(uptake, spacing_mm, draw_scanner(rng), rng), affine)


def draw_pet_grid(centre_mm: NDArray[np.float64], rng: np.random.Generator) -> Grid:
    """Draw a PET's grid about a point, LPS mm: slices towards S, square pixels, the point anywhere in a voxel."""
    pixel_mm = rng.uniform(*PIXEL_MM)
    spacing_mm = np.array([rng.uniform(*SLICE_MM), pixel_mm, pixel_mm])
    k, j, i = (int(n) for n in VIEW_MM // spacing_mm)
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = spacing_mm
    affine[:3, 3] = centre_mm - ((np.array([k, j, i]) / 2 - rng.random(3)) * spacing_mm)[::-1]
    affine[3, 3] = 1.0
    return Grid(affine, (k, j, i))


def take_on(pet: Volume, grid: Grid) -> Volume:
    """Take a PET on the voxels of another grid with the same axes, each about the mean over its extent."""
    averaged = Volume(blur(pet.array, BOX_SIGMA * spacing_of(grid.affine) / pet.spacing_mm), pet.affine)
    return Volume(resample(averaged, grid, RigidTransform.identity()), grid.affine)


def draw_rotation(degrees: tuple[float, float], rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw a (3, 3) rotation about a random axis by an angle uniform between two values in degrees."""
    axis = rng.standard_normal(3)
    axis /= np.linalg.norm(axis)
    angle = np.radians(rng.uniform(*degrees))
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)
