"""Interpolation by cubic B-splines onto another grid, step 7 of the method.

Flow: pipeline | problem | outputs > [resample]
Never: a value outside the moving volume's own range, or outside its field of view; float64 copies of a whole grid.

Sources: Unser, Aldroubi and Eden 1993, doi:10.1109/78.193220 (the filter and its pole);
Thevenaz, Blu and Unser 2000, doi:10.1109/42.875199 (interpolation with mirrored ends).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from registration.transforms import RigidTransform
from registration.volume import Volume, check_affine

POLE = np.sqrt(3.0) - 2.0  # of the cubic B-spline's inverse filter
GAIN = 6.0
HORIZON = 14  # samples after which the pole's power is below float32's precision
CHUNK_POINTS = 16_384  # keeps the weights and taps of one chunk in a core's cache
EDGE = 2  # mirrored coefficients kept round the volume so that no tap leaves it


@dataclass(frozen=True, eq=False)
class Grid:
    """Where voxels shall lie: an affine as `Volume.affine` and a (k, j, i) shape."""

    affine: NDArray[np.float64]
    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        check_affine(np.asarray(self.affine, dtype=np.float64))


@dataclass(frozen=True, eq=False)
class Spline:
    """A volume as cubic B-spline coefficients, made once and sampled often."""

    taps: NDArray[np.complex128]  # four neighbours along i in the 16 bytes of one item, C order (k, j, i), flat
    padded_shape: tuple[int, int, int]
    shape: tuple[int, int, int]
    index_from_mm: NDArray[np.float64]
    limits: tuple[float, float]


def resample(moving: Volume, grid: Volume | Grid, fixed_from_moving: RigidTransform) -> NDArray[np.float32]:
    """Carry the moving volume over onto the fixed grid.

    Parameters
    ----------
    moving : Volume
    grid : Volume or Grid
        The fixed grid; of a Volume only affine and shape are used.
    fixed_from_moving : RigidTransform

    Returns
    -------
    (k, j, i) float32 on the fixed grid
        Cubic B-spline interpolation, overshoot clipped to the moving volume's range; 0 outside its field of view,
        which ends half a voxel beyond the outermost centres.
    """
    return sample_grid(make_spline(moving), Grid(grid.affine, grid.shape), fixed_from_moving)


def thin_slices(volume: Volume, thickest_mm: float) -> Volume:
    """Put slices in the middle between neighbours until none along any axis lie further apart than this.

    Cubic B-spline interpolation, overshoot clipped to the volume's range; the slices that were there stay as they are.
    """
    for axis in range(3):
        while volume.spacing_mm[axis] > thickest_mm and volume.shape[axis] > 1:
            volume = _put_between(volume, axis)
    return volume


def make_spline(volume: Volume) -> Spline:
    """Return the coefficients whose cubic B-spline passes through every voxel, mirrored at the ends."""
    coefficients = np.array(volume.array, dtype=np.float32, order="C")
    limits = float(coefficients.min()), float(coefficients.max())
    for axis in range(3):
        _filter_axis(np.moveaxis(coefficients, axis, 0))
    k, j, i = (EDGE, EDGE + 1), (EDGE, EDGE + 1), (EDGE, EDGE + 3)
    padded = np.pad(coefficients, (k, j, i), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 4, axis=2)
    taps = np.ascontiguousarray(windows).reshape(-1).view(np.complex128)
    nk, nj, ni, _ = windows.shape
    return Spline(taps, (nk, nj, ni), volume.shape, volume.index_from_mm, limits)


def sample_grid(spline: Spline, grid: Grid, fixed_from_moving: RigidTransform) -> NDArray[np.float32]:
    """Sample a spline on a fixed grid; as `resample`, for a volume that is carried over more than once."""
    moving_index_from_grid = spline.index_from_mm @ fixed_from_moving.inverse().matrix @ grid.affine
    output = np.zeros(grid.shape, dtype=np.float32)
    with ThreadPoolExecutor(2) as threads:  # each slice is written by one thread: the result knows no order
        list(threads.map(lambda k: _fill_slice(spline, moving_index_from_grid, k, output[k]), range(grid.shape[0])))
    return output


def sample_points(spline: Spline, moving_mm: NDArray[np.float64]) -> NDArray[np.float32]:
    """Sample a spline at (n, 3) points in the moving volume's LPS mm; returns (n,) float32, 0 outside its view."""
    index = moving_mm @ spline.index_from_mm[:3, :3].T + spline.index_from_mm[:3, 3]
    values = np.zeros(len(index), dtype=np.float32)
    _fill(spline, np.ascontiguousarray(index.T, dtype=np.float32), values)
    return values


def _fill_slice(spline: Spline, matrix: NDArray[np.float64], k: int, output: NDArray[np.float32]) -> None:
    """Fill one slice of the output, in place; `matrix` takes the grid's index to the moving one."""
    rows, columns = output.shape
    start = matrix[:3, 3] + matrix[:3, 0] * k
    for first, last in _row_chunks(rows, columns):
        j = np.arange(first, last, dtype=np.float64)[:, None]
        i = np.arange(columns, dtype=np.float64)[None, :]
        index = np.empty((3, last - first, columns), dtype=np.float32)
        for axis in range(3):
            index[axis] = start[axis] + matrix[axis, 1] * j + matrix[axis, 2] * i
        _fill(spline, index.reshape(3, -1), output[first:last].reshape(-1))


def _row_chunks(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Cut the rows of a slice into runs of about CHUNK_POINTS points."""
    step = max(1, CHUNK_POINTS // columns)
    for first in range(0, rows, step):
        yield first, min(first + step, rows)


def _fill(spline: Spline, index: NDArray[np.float32], output: NDArray[np.float32]) -> None:
    """Interpolate at (3, n) moving indices into the (n,) output, in place; what lies outside keeps its value."""
    inside = np.ones(index.shape[1], dtype=bool)
    for axis in range(3):
        inside &= (index[axis] >= -0.5) & (index[axis] <= spline.shape[axis] - 0.5)
    where = np.flatnonzero(inside)
    for first in range(0, len(where), CHUNK_POINTS):
        chosen = where[first : first + CHUNK_POINTS]
        output[chosen] = np.clip(_interpolate(spline, index[:, chosen]), *spline.limits)


def _interpolate(spline: Spline, index: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the spline's value at (3, n) indices inside the field of view."""
    floor = np.floor(index)
    wk, wj, wi = (_weights(index[axis] - floor[axis]) for axis in range(3))
    _, nj, ni = spline.padded_shape
    base = floor.astype(np.int64) + (EDGE - 1)
    first_tap = (base[0] * nj + base[1]) * ni + base[2]
    along_i = np.ascontiguousarray(wi.T)
    total = np.zeros_like(along_i)
    for dk in range(4):
        for dj in range(4):
            taps = spline.taps.take(first_tap + (dk * nj + dj) * ni, mode="clip").view(np.float32).reshape(-1, 4)
            taps *= (wk[dk] * wj[dj])[:, None]
            total += taps
    return np.asarray(np.einsum("nt,nt->n", total, along_i), dtype=np.float32)


def _put_between(volume: Volume, axis: int) -> Volume:
    """Return a volume's n slices along an axis with n - 1 between them."""
    samples = np.moveaxis(volume.array, axis, 0)
    coefficients = np.array(samples, dtype=np.float32, order="C")
    _filter_axis(coefficients)
    padded = np.pad(coefficients, ((1, 1), (0, 0), (0, 0)), mode="reflect")
    between = (np.float32(23) * (coefficients[:-1] + coefficients[1:]) + padded[:-3] + padded[3:]) / np.float32(48)
    woven = np.empty((2 * len(samples) - 1, *samples.shape[1:]), dtype=np.float32)
    woven[::2] = samples
    woven[1::2] = np.clip(between, samples.min(), samples.max())
    affine = volume.affine.copy()
    affine[:3, axis] /= 2
    return Volume(np.ascontiguousarray(np.moveaxis(woven, 0, axis)), affine)


def _weights(t: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cubic B-spline's four weights, (4, n), at the offset t in [0, 1) from the second tap."""
    rest = 1 - t
    weights = np.empty((4, len(t)), dtype=np.float32)
    weights[0] = rest**3 / 6
    weights[1] = 2 / 3 - t * t * (2 - t) / 2
    weights[2] = 2 / 3 - rest * rest * (2 - rest) / 2
    weights[3] = t**3 / 6
    return weights


def _filter_axis(samples: NDArray[np.float32]) -> None:
    """Turn samples into B-spline coefficients along the first axis, in place, with mirrored ends."""
    n = len(samples)
    if n == 1:
        return
    samples *= GAIN
    mirrored = [m % (2 * n - 2) for m in range(HORIZON)]
    start = sum(POLE**m * samples[min(at, 2 * n - 2 - at)] for m, at in enumerate(mirrored))
    samples[0] = start
    for m in range(1, n):
        samples[m] += np.float32(POLE) * samples[m - 1]
    samples[n - 1] = np.float32(POLE / (POLE * POLE - 1)) * (samples[n - 1] + np.float32(POLE) * samples[n - 2])
    for m in range(n - 2, -1, -1):
        samples[m] = np.float32(POLE) * (samples[m + 1] - samples[m])
