"""Signed distances of simple solids, their unions, and smooth random fields: what the synthetic head is made of.

Flow: phantom > [shapes]
Never: anatomy. A distance is in mm and negative inside; away from the surface it is an estimate.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
Real = NDArray[np.floating[Any]]
Triple = tuple[float, float, float]

EDGE_MM = 1.3  # width over which one tissue fades into the next
SHEET_LATTICE_MM = 2.0
NORMAL_BLUR_VOXELS = 1.5
SHEET_PULL = 0.8  # 1: sheets stand upright on the surface


class Points(NamedTuple):
    """Coordinates of many points, arrays of one shape, mm: x to the left, y to the back, z up."""

    x: Field
    y: Field
    z: Field


def ellipsoid(p: Points, centre: Triple, radii: Triple) -> Field:
    """Return the distance to an ellipsoid with its axes along x, y, z (first order, exact for a sphere)."""
    scaled = [(axis - np.float32(c)) / np.float32(r) for axis, c, r in zip(p, centre, radii, strict=True)]
    near = np.sqrt(sum(np.square(s) for s in scaled))
    slope = np.sqrt(sum(np.square(s / np.float32(r)) for s, r in zip(scaled, radii, strict=True)))
    return np.asarray(near * (near - 1) / np.maximum(slope, 1e-6), np.float32)


def capsule(p: Points, start: Triple, end: Triple, start_radius: float, end_radius: float) -> Field:
    """Return the distance to a segment less a radius that goes linearly from one end to the other."""
    a = np.array(start, np.float32)
    along = np.array(end, np.float32) - a
    t = sum(((axis - o) * d for axis, o, d in zip(p, a, along, strict=True)), np.float32(0)) / np.dot(along, along)
    t = np.clip(t, 0, 1)
    squares = sum(np.square(axis - o - t * d) for axis, o, d in zip(p, a, along, strict=True))
    return np.asarray(np.sqrt(squares) - (start_radius + t * (end_radius - start_radius)), np.float32)


def union(*solids: Real) -> Field:
    """Return the distance to what any of the solids holds."""
    return np.asarray(np.minimum.reduce(solids), np.float32)


def intersect(a: Real, b: Real) -> Field:
    """Return the distance to what both solids hold."""
    return np.asarray(np.maximum(a, b), np.float32)


def subtract(a: Real, b: Real) -> Field:
    """Return the distance to what the first solid holds and the second does not."""
    return np.asarray(np.maximum(a, -b), np.float32)


def smooth_union(a: Real, b: Real, blend_mm: float = 8.0) -> Field:
    """Return the distance to the union, its crease filled over `blend_mm` (the quadratic smooth minimum)."""
    h = np.maximum(blend_mm - np.abs(a - b), 0) / blend_mm
    return np.asarray(np.minimum(a, b) - h * h * (blend_mm / 4), np.float32)


def fade(distance: Real) -> Field:
    """Return the share of a voxel inside a surface: 1 inside, 0 outside, linear over `EDGE_MM`."""
    return np.asarray(np.clip(0.5 - distance / EDGE_MM, 0, 1), np.float32)


def double(field: Field) -> Field:
    """Return a field on a grid twice as fine, (2k-1, 2j-1, 2i-1), linear in between."""
    for axis in (2, 1, 0):  # the strided passes while the array is small
        shape = list(field.shape)
        shape[axis] = 2 * shape[axis] - 1
        fine = np.empty(shape, np.float32)
        even, odd, low, high = (
            tuple(part if other == axis else slice(None) for other in range(3))
            for part in (slice(0, None, 2), slice(1, None, 2), slice(None, -1), slice(1, None))
        )
        fine[even] = field
        fine[odd] = (field[low] + field[high]) * np.float32(0.5)
        field = fine
    return field


def blur(field: Field, sigma_voxels: float | Triple) -> Field:
    """Return a field convolved with a Gaussian whose deviation is given in voxels, for all axes or for k, j, i."""
    sigma_k, sigma_j, sigma_i = sigma_voxels if isinstance(sigma_voxels, tuple) else (sigma_voxels,) * 3
    planes = np.stack([cv2.GaussianBlur(plane, (0, 0), sigma_i, sigmaY=sigma_j) for plane in field])
    columns = cv2.GaussianBlur(planes.reshape(len(field), -1), (1, 0), 1e-6, sigmaY=sigma_k)
    return np.asarray(columns.reshape(field.shape), np.float32)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int, int], spacing_voxels: float) -> Field:
    """Draw a smooth random field, mean 0 and deviation 1 over many draws.

    Parameters
    ----------
    rng : numpy.random.Generator
    shape : tuple of int
        (k, j, i).
    spacing_voxels : float
        Distance between the knots of the cubic B-spline; along a line the field crosses 0 about every 2.7 of it.

    Returns
    -------
    (k, j, i) float32
    """
    k, j, i = (_spline_basis(n, spacing_voxels) for n in shape)
    knots = rng.standard_normal((k.shape[1], j.shape[1], i.shape[1]), np.float32)
    field = np.tensordot(np.tensordot(knots, i, ([2], [1])), j, ([1], [1]))
    return np.ascontiguousarray(np.tensordot(k, field, ([1], [0])).swapaxes(1, 2))


def _spline_basis(count: int, spacing: float) -> Field:
    """Return the (count, knots) weights of a uniform cubic B-spline, scaled to keep the deviation of its knots."""
    position = np.arange(count) / spacing
    knots = np.arange(-1, int(position[-1]) + 3)
    t = np.abs(position[:, None] - knots[None, :])
    weights = np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.where(t < 2, (2 - t) ** 3 / 6, 0.0))
    return np.asarray(weights / np.sqrt(np.square(weights).sum(axis=1, keepdims=True)), np.float32)


def fold_sheets(p: Points, distance: Field, spacing_mm: float, rng: np.random.Generator) -> Field:
    """Return the signed distance to random sheets that stand on a surface, as sulci stand on the brain's.

    Parameters
    ----------
    p : Points
        The voxels of a grid.
    distance : (k, j, i) float32
        To the surface, mm, negative inside; the grid is `p`'s.
    spacing_mm : float
        Knots of the random field: the sheets stand about twice that apart.
    rng : numpy.random.Generator

    Returns
    -------
    (k, j, i) float32
        A random field is read near the closest point of the surface (not quite there, so that the sheets lean);
        its zero set is the sheets, and field over gradient the distance, within +-20 mm.
    """
    # Blurred, the normal shrinks where it would flip half way between two surfaces, and the sheets stay whole.
    normal = np.gradient(blur(distance, NORMAL_BLUR_VOXELS), SHEET_LATTICE_MM)
    place = [axis - SHEET_PULL * distance * n for axis, n in zip(reversed(p), normal, strict=True)]
    low = [float(axis.min()) for axis in place]
    shape = [int((float(axis.max()) - start) / SHEET_LATTICE_MM) + 2 for axis, start in zip(place, low, strict=True)]
    noise = smooth_noise(rng, (shape[0], shape[1], shape[2]), spacing_mm / SHEET_LATTICE_MM)
    slope = np.sqrt(sum(np.square(g) for g in np.gradient(noise, SHEET_LATTICE_MM)))
    lattice = np.clip(noise / np.maximum(slope, 0.3 * slope.mean()), -20, 20)
    return sample_linear(
        lattice, np.stack([(a - start) / SHEET_LATTICE_MM for a, start in zip(place, low, strict=True)])
    )


def sample_linear(array: Field, index: NDArray[np.float32]) -> Field:
    """Read an array between its voxels.

    Parameters
    ----------
    array : (k, j, i) float32
    index : (3, ...) float32
        Positions in voxels, in the order k, j, i.

    Returns
    -------
    (...) float32
        Linear between the eight neighbours; 0 where a position is outside the array.
    """
    shape = np.array(array.shape).reshape(3, *([1] * (index.ndim - 1)))
    inside = ((index >= 0) & (index <= shape - 1)).all(axis=0)
    base = np.clip(np.floor(index), 0, shape - 2).astype(np.intp)
    k, j, i = index - base
    flat = np.ascontiguousarray(array).ravel()
    steps = (array.shape[1] * array.shape[2], array.shape[2], 1)
    corner = base[0] * steps[0] + base[1] * steps[1] + base[2]
    total = np.zeros(index.shape[1:], np.float32)
    for number in range(8):
        bits = (number >> 2 & 1, number >> 1 & 1, number & 1)
        weight = (k if bits[0] else 1 - k) * (j if bits[1] else 1 - j) * (i if bits[2] else 1 - i)
        total += weight * flat[corner + sum(bit * step for bit, step in zip(bits, steps, strict=True))]
    return np.where(inside, total, 0).astype(np.float32)
