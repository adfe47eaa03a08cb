"""A synthetic head by code: tissue fractions on a 1 mm grid, another person for every seed.

Flow: scans > [phantom] > shapes
Never: a file, a real person's anatomy, DICOM. Head coordinates are LPS mm with the origin in the middle of the
cerebrum; only `scans` gives the head a place in a scanner.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from dicomnode.demo.shapes import (
    Field,
    Points,
    capsule,
    double,
    ellipsoid,
    fade,
    fold_sheets,
    intersect,
    smooth_noise,
    smooth_union,
    subtract,
    union,
)

# Distances are smooth, so they are worked out every 2 mm and doubled to 1 mm.
COARSE_MM = 2.0
COARSE_SHAPE = (115, 116, 101)
ORIGIN_MM = (-124.0, -122.0, -100.0)  # z, y, x of voxel (0, 0, 0)
CEREBRUM_RADII_MM = (68.0, 86.0, 66.0)  # x, y, z
SKULL_MM = 6.5
SCALP_MM = 14.0  # skin to the inner table
FOLD_MM = 6.5  # knots of the folds' noise: sulci stand about twice that apart
FOLIA_MM = 4.5
BRAIN_SHARE = 0.8  # voxels that are brain for sure


class Tissue(IntEnum):
    """What a voxel may hold; what is missing to one is air."""

    MUSCLE = 0
    FAT = 1
    BONE = 2
    FLUID = 3
    CORTEX = 4
    WHITE = 5
    NUCLEI = 6
    CEREBELLUM = 7
    EYE = 8


BRAIN = (Tissue.CORTEX, Tissue.WHITE, Tissue.NUCLEI, Tissue.CEREBELLUM)


@dataclass(frozen=True)
class Head:
    """A synthetic head.

    Attributes
    ----------
    fractions : (9, k, j, i) uint8
        Share of each `Tissue` in each voxel, in 1/255.
    affine : (4, 4) float64
        Index (k, j, i, 1) to head coordinates, LPS mm.
    """

    fractions: NDArray[np.uint8]
    affine: NDArray[np.float64]

    def brain_share(self) -> Field:
        """Return the share of brain in each voxel, (k, j, i) float32 from 0 to 1."""
        total = np.zeros(self.fractions.shape[1:], np.float32)
        for tissue in BRAIN:
            total += self.fractions[tissue]
        return total / np.float32(255)

    def brain_points(self, count: int, seed: int = 0) -> NDArray[np.float64]:
        """Draw points of the brain: (count, 3) float64, head coordinates in LPS mm."""
        brain = self.brain_share()
        inside = np.random.default_rng(seed).choice(np.flatnonzero(brain > BRAIN_SHARE), count)
        index = np.stack(np.unravel_index(inside, brain.shape), axis=-1)
        return np.asarray(index @ self.affine[:3, :3].T + self.affine[:3, 3])


def make_head(seed: int) -> Head:
    """Make one person's head.

    Parameters
    ----------
    seed : int
        Another seed is another person: size, shape, asymmetry, folds, ventricles.

    Returns
    -------
    Head
        On a grid of 229 x 231 x 201 voxels (k, j, i) of 1 mm.
    """
    rng = np.random.default_rng(seed)
    points = _warped_points(rng)
    parts = _brain_parts(points, rng)
    fractions = np.zeros((len(Tissue), *(2 * n - 1 for n in COARSE_SHAPE)), np.uint8)
    _paint_round_the_brain(fractions, points, parts, rng)
    box = _box_round(union(parts["cerebrum"], parts["cerebellum"], parts["stem"]))
    inner = {name: double(field[box]) for name, field in (parts | _deep_parts(points, rng)).items()}
    fine = tuple(slice(2 * s.start, 2 * s.stop - 1) for s in box)
    _paint_brain(fractions[(slice(None), *fine)], inner)
    affine = np.eye(4)[[2, 1, 0, 3]]
    affine[:3, 3] = ORIGIN_MM[::-1]
    return Head(fractions, affine)


def _warped_points(rng: np.random.Generator) -> Points:
    """Give every coarse voxel its place in a standard head: this bends and scales the person."""
    scale = 1.0 + rng.normal(0.0, 0.025, 3).clip(-0.05, 0.05)
    axes = [
        origin + COARSE_MM * np.arange(n, dtype=np.float32) for origin, n in zip(ORIGIN_MM, COARSE_SHAPE, strict=True)
    ]
    grid = np.meshgrid(*axes, indexing="ij")
    warped = [
        (field / scale[axis] + 2.5 * smooth_noise(rng, COARSE_SHAPE, 18.0)).astype(np.float32)
        for axis, field in enumerate(grid)
    ]
    z, y, x = warped
    # The right frontal and the left occipital lobe bulge: the torque of most people.
    return Points(x + 1.5 * np.sin(y / 60.0, dtype=np.float32), y, z)


def _brain_parts(p: Points, rng: np.random.Generator) -> dict[str, Field]:
    """Give the signed distance (mm, negative inside) of each large part of the brain, without folds."""
    side = np.abs(p.x)
    hull = ellipsoid(p, (0, 0, 4), CEREBRUM_RADII_MM)
    base = np.where(p.y < 5, -20.0 - 0.15 * (p.y + 60), -14.0 + 0.12 * side).astype(np.float32)
    frontal = smooth_union(intersect(hull, base - p.z), ellipsoid(Points(side, p.y, p.z), (44, -6, -26), (22, 38, 20)))
    fissure = intersect(side - 1.4, 30.0 * (1.0 - np.hypot((p.y - 4) / 42.0, (p.z - 4) / 27.0)).astype(np.float32))
    sylvian_z = -11.0 + 0.30 * (p.y + 10.0) + 2.0 * np.sign(p.x)
    sylvian = intersect(np.abs(p.z - sylvian_z) - 1.6, intersect(36.0 - side, p.y - 38.0))
    cerebellum = intersect(ellipsoid(p, (0, 50, -40), (51, 33, 27)), p.z + 17.0 - 0.12 * side)
    stem = capsule(p, (0, 14, -14), (0, 30, -60), 13.0, 9.0)
    cerebrum = subtract(subtract(frontal, fissure), sylvian)
    return {
        "hull": frontal,
        "cerebrum": cerebrum,
        "cerebellum": cerebellum,
        "stem": smooth_union(stem, capsule(p, (0, 30, -60), (0, 38, -130), 8.0, 6.0)),
        "folds": fold_sheets(p, cerebrum, FOLD_MM, rng),
        "fold_depth": 14.0 + 4.0 * smooth_noise(rng, COARSE_SHAPE, 10.0),
        "cortex_mm": 2.9 + 0.35 * smooth_noise(rng, COARSE_SHAPE, 14.0),
        "folia": fold_sheets(p, cerebellum, FOLIA_MM, rng),
    }


def _deep_parts(p: Points, rng: np.random.Generator) -> dict[str, Field]:
    """Give the signed distance of the ventricles and of the deep nuclei; the two sides differ."""
    ventricles, nuclei = [], []
    for sign in (-1.0, 1.0):
        q = Points(p.x * sign, p.y, p.z)
        width = rng.uniform(0.75, 1.5)
        path = [(7, -34, 8), (9, -8, 19), (13, 22, 18), (24, 38, 4), (20, 64, 4)]
        radii = [5.0, 4.5, 5.0, 5.5, 2.0]
        ventricles += [
            capsule(q, path[n], path[n + 1], radii[n] * width, radii[n + 1] * width) for n in range(len(path) - 1)
        ]
        ventricles.append(capsule(q, path[3], (33, 2, -18), 4.0 * width, 2.0))
        shift = rng.normal(0.0, 0.8, 3)
        nuclei += [
            ellipsoid(q, (13 + shift[0], -22 + shift[1], 9 + shift[2]), (6, 13, 10)),
            capsule(q, (14, -12, 16), (19, 16, 21), 4.0, 2.0),
            ellipsoid(q, (26 + shift[2], -6 + shift[0], 1 + shift[1]), (6, 17, 10)),
            ellipsoid(q, (11 + shift[1], 14 + shift[2], 6 + shift[0]), (9, 15, 9)),
            ellipsoid(q, (25, 4, -22), (8, 14, 7)),
        ]
    third = intersect(np.abs(p.x) - 1.8, ellipsoid(p, (0, 6, 2), (6, 18, 12)))
    fourth = ellipsoid(p, (0, 35, -38), (7, 6, 10))
    return {"ventricles": union(*ventricles, third, fourth), "nuclei": union(*nuclei)}


def _paint_round_the_brain(
    fractions: NDArray[np.uint8], p: Points, parts: dict[str, Field], rng: np.random.Generator
) -> None:
    """Paint fluid round the brain, skull, scalp, face, neck, eyes and the airways."""
    side = np.abs(p.x)
    q = Points(side, p.y, p.z)
    cavity = smooth_union(smooth_union(parts["hull"], parts["cerebellum"]), parts["stem"])
    cavity = cavity - 2.2 - 0.8 * smooth_noise(rng, COARSE_SHAPE, 9.0)
    face = smooth_union(ellipsoid(p, (0, -58, -58), (57, 50, 62)), ellipsoid(p, (0, -108, -52), (12, 14, 20)))
    neck = ellipsoid(p, (0, 22, -125), (56, 60, 90))
    skin = smooth_union(smooth_union(cavity - SCALP_MM, face), neck)
    spine = capsule(p, (0, 38, -84), (0, 44, -140), 16.0, 16.0)
    jaw = np.abs(ellipsoid(p, (0, -50, -100), (44, 46, 40))) - 5.0
    bone = union(cavity - SKULL_MM - 0.8 * smooth_noise(rng, COARSE_SHAPE, 8.0), spine, intersect(jaw, p.z + 92.0))
    air = union(
        ellipsoid(q, (27, -72, -60), (12, 14, 16)),
        ellipsoid(q, (5, -76, -56), (4, 28, 20)),
        capsule(p, (0, -40, -66), (0, -18, -130), 9.0, 9.0),
        ellipsoid(p, (0, -48, -34), (11, 10, 8)),
        ellipsoid(q, (56, 34, -52), (7, 9, 12)),
        ellipsoid(q, (9, -91, -14), (9, 3, 9)),
    )
    fat_depth = 3.0 + 1.2 * smooth_noise(rng, COARSE_SHAPE, 7.0)
    orbit = ellipsoid(q, (32, -70, -34), (17, 26, 16))
    streaks = np.abs(smooth_noise(rng, COARSE_SHAPE, 4.0)) * 6.0 - 1.2
    fat = union(subtract(skin, skin + fat_depth), intersect(orbit, skin + 2.0), intersect(streaks, skin + 12.0))
    inside, skull, fluid = fade(double(skin)), fade(double(bone)), fade(double(cavity))
    marrow = 0.55 * fade(np.abs(double(cavity) - 0.5 * SKULL_MM) - 1.2)
    eye = fade(double(ellipsoid(q, (32, -82, -34), (12, 12, 12))))
    soft = inside * (1 - skull) * (1 - fade(double(air)))
    fatty = fade(double(fat)) * (1 - eye)
    skull *= (1 - fluid) * inside * (1 - fade(double(air)))
    shares = {
        Tissue.EYE: soft * eye,
        Tissue.FAT: soft * fatty + skull * marrow,
        Tissue.MUSCLE: soft * (1 - eye - fatty),
        Tissue.BONE: skull * (1 - marrow),
        Tissue.FLUID: fluid,
    }
    for tissue, share in shares.items():
        fractions[tissue] = _as_bytes(share)


def _paint_brain(fractions: NDArray[np.uint8], parts: dict[str, Field]) -> None:
    """Paint the brain into its box; `fractions` is a view of it, `parts` are distances at 1 mm."""
    depth = -parts["cerebrum"]
    sheet = np.hypot(parts["folds"], np.maximum(depth - parts["fold_depth"], 0.0)) - 0.8
    to_fluid = np.minimum(depth, sheet)
    tissue = fade(-to_fluid)
    core = fade(parts["cortex_mm"] - to_fluid)
    cortex, white = tissue * (1 - core), tissue * core

    leaf = -parts["cerebellum"]
    apart = np.abs(parts["folia"])
    hind = fade(-leaf) * (1 - tissue) * (1 - 0.8 * fade(np.maximum(apart - 0.8, leaf - 7.0)))
    arbour = fade(14.0 - leaf - apart)
    stem = fade(parts["stem"]) * (1 - tissue - hind)

    nuclei, dry = fade(parts["nuclei"]), 1 - fade(parts["ventricles"])
    shares = {
        Tissue.CORTEX: cortex * (1 - nuclei) * dry,
        Tissue.WHITE: (white * (1 - nuclei) + hind * arbour + 0.8 * stem) * dry,
        Tissue.NUCLEI: tissue * nuclei * dry,
        Tissue.CEREBELLUM: (hind * (1 - arbour) + 0.2 * stem) * dry,
    }
    outside = 1 - (tissue + hind + stem) * dry
    for name, share in shares.items():
        fractions[name] = _as_bytes(share)
    for name in (Tissue.FLUID, Tissue.BONE, Tissue.FAT, Tissue.MUSCLE):
        fractions[name] = _as_bytes(fractions[name] / np.float32(255) * outside)


def _box_round(brain: Field) -> tuple[slice, slice, slice]:
    """Return the slices of the coarse grid that hold every voxel of the brain."""
    inside = brain < COARSE_MM
    spans = [np.flatnonzero(inside.any(axis=tuple(other for other in range(3) if other != axis))) for axis in range(3)]
    k, j, i = (slice(int(span[0]), int(span[-1]) + 1) for span in spans)
    return k, j, i


def _as_bytes(share: Field) -> NDArray[np.uint8]:
    return (share * 255.0 + 0.5).astype(np.uint8)
