"""Volumes to comparable cubes: smoothing, foreground, robust intensity, one 2 mm grid round the head.

Flow: pipeline > [preprocess] > keypoints | descriptors | refinement
Never: a transform estimated here; the header's own geometry is all that is used.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from registration.errors import EmptyVolumeError, InvalidVolumeError
from registration.resample import Grid
from registration.transforms import RigidTransform
from registration.trilinear import TOP, Packed, pack, sample
from registration.volume import Volume, spacing_of

CUBE_VOXELS = 128
CUBE_SPACING_MM = 2.0
FIXED_FWHM_MM = 5.0  # brings the MR near the PET's resolution
MOVING_FWHM_MM = 3.0
HEAD_HEIGHT_MM = 170.0  # what lies further below the top of the head is neck
SIGMA_PER_FWHM = 1 / 2.354820045
FOREGROUND_SHARE_OF_OTSU = 0.6
SMALLEST_FOREGROUND_MM3 = 20_000.0  # a cube of 27 mm: less is no part of a head worth matching
LOOKED_AT_MM = 4.0
BRIGHT_PERCENT = 97.0
CEILING = 1.5  # of the bright level; vessels and hot spots are cut here


@dataclass(frozen=True, eq=False)
class Cube:
    """One volume on the working grid.

    Attributes
    ----------
    array : (128, 128, 128) float32, 0 to 1
        Robustly normalised intensity; 0 outside the volume's field of view.
    foreground : (128, 128, 128) bool
    affine : (4, 4) float64, index to LPS mm; axes along S, P and L.
    """

    array: NDArray[np.float32]
    foreground: NDArray[np.bool_]
    affine: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A volume smoothed and shrunk, with the levels that tell tissue from air.

    Attributes
    ----------
    shrunk : Volume
        Before smoothing.
    volume : Volume
    threshold : float
        Foreground lies above it.
    bright : float
        The 97th percentile of the foreground: 1 / CEILING after normalisation.
    centre_mm : (3,) float64, LPS mm
        Where the head's middle is taken to be.
    """

    shrunk: Volume
    volume: Volume
    threshold: float
    bright: float
    centre_mm: NDArray[np.float64]

    @cached_property
    def packed(self) -> Packed:
        """The smoothed volume as the working grid takes it, up to CEILING times the bright level."""
        return pack(self.volume, CEILING * self.bright)


def check_signal(volume: Volume, role: str) -> None:
    """Raise unless every voxel is finite and they differ; `role` names the volume in the message."""
    if not np.isfinite(volume.array).all():
        raise InvalidVolumeError(f"{role} volume holds {int((~np.isfinite(volume.array)).sum())} voxels not finite")
    low, high = float(volume.array.min()), float(volume.array.max())
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        raise EmptyVolumeError(f"{role} volume has the value {low:g} everywhere")


def prepare_fixed(volume: Volume) -> Prepared:
    """Prepare the fixed volume (MR); its middle is that of the foreground, the neck left out."""
    check_signal(volume, "fixed")
    shrunk = shrink(volume)
    smoothed = smooth(shrunk, FIXED_FWHM_MM)
    threshold, points, values = find_foreground(smoothed, "fixed")
    head = points[:, 2] > np.percentile(points[:, 2], 99) - HEAD_HEIGHT_MM
    return Prepared(
        shrunk, smoothed, threshold, float(np.percentile(values, BRIGHT_PERCENT)), points[head].mean(axis=0)
    )


def prepare_moving(volume: Volume) -> Prepared:
    """Prepare the moving volume (PET); its middle is the centre of uptake, hot spots cut."""
    check_signal(volume, "moving")
    shrunk = shrink(volume)
    smoothed = smooth(shrunk, MOVING_FWHM_MM)
    threshold, points, values = find_foreground(smoothed, "moving")
    bright = float(np.percentile(values, BRIGHT_PERCENT))
    centre_mm = np.average(points, axis=0, weights=np.minimum(values, bright))
    return Prepared(shrunk, smoothed, threshold, bright, centre_mm)


def make_cube_grid(centre_mm: NDArray[np.float64]) -> Grid:
    """Return the working grid round a point: k towards S, j towards P, i towards L, 2 mm."""
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = CUBE_SPACING_MM
    affine[:3, 3] = centre_mm - CUBE_SPACING_MM * (CUBE_VOXELS - 1) / 2
    affine[3, 3] = 1.0
    return Grid(affine, (CUBE_VOXELS, CUBE_VOXELS, CUBE_VOXELS))


def make_cube(prepared: Prepared, grid: Grid, grid_from_volume: RigidTransform) -> Cube:
    """Carry a prepared volume over onto the working grid and normalise it."""
    packed = prepared.packed
    matrix = (packed.index_from_mm @ grid_from_volume.inverse().matrix @ grid.affine)[:3].astype(np.float32)
    slices, rows, columns = grid.shape
    j, i = np.indices((rows, columns), dtype=np.float32).reshape(2, -1)
    first = matrix[:, 1:2] * j + matrix[:, 2:3] * i + matrix[:, 3:]
    array = np.zeros((slices, rows * columns), dtype=np.float32)

    def fill(k: int) -> None:
        where, values = sample(packed, first + matrix[:, :1] * np.float32(k))
        array[k, where] = values * np.float32(1 / TOP)

    with ThreadPoolExecutor(2) as threads:  # each slice is written by one thread: the result knows no order
        list(threads.map(fill, range(slices)))
    foreground = array > np.float32(prepared.threshold / (CEILING * prepared.bright))
    return Cube(array.reshape(grid.shape), foreground.reshape(grid.shape), grid.affine)


def find_view(volume: Volume, grid: Grid, grid_from_volume: RigidTransform) -> NDArray[np.bool_]:
    """Return which voxels of the grid lie in the volume's field of view: (k, j, i) bool."""
    index_from_grid = volume.index_from_mm @ grid_from_volume.inverse().matrix @ grid.affine
    k, j, i = np.ogrid[tuple(slice(0, n) for n in grid.shape)]
    inside = np.ones(grid.shape, dtype=bool)
    for along_k, along_j, along_i, at, length in zip(*index_from_grid[:3].T, volume.shape, strict=True):
        index = (along_k * k + along_j * j + at) + along_i * i
        inside &= (index >= -0.5) & (index < length - 0.5)
    return inside


def normalise(array: NDArray[np.float32], bright: float) -> NDArray[np.float32]:
    """Scale so that 0 to CEILING times the bright level becomes 0 to 1, clipped."""
    return np.asarray(np.clip(array * np.float32(1.0 / (CEILING * bright)), 0, 1), dtype=np.float32)


def shrink(volume: Volume) -> Volume:
    """Average whole voxels together until the spacing is as near 2 mm as it goes without passing it."""
    factors = np.maximum(1, np.floor(CUBE_SPACING_MM / volume.spacing_mm + 1e-3)).astype(int)
    factors = np.minimum(factors, volume.shape)
    if (factors == 1).all():
        return volume
    k, j, i = (int(n // f) for n, f in zip(volume.shape, factors, strict=True))
    fk, fj, fi = (int(f) for f in factors)
    slices = np.zeros((k, j, i), dtype=np.float32)
    for first in range(fk):
        for at in range(k):
            plane = volume.array[at * fk + first, : j * fj, : i * fi]
            slices[at] += cv2.resize(plane, (i, j), interpolation=cv2.INTER_AREA) if fj * fi > 1 else plane
    slices /= fk
    affine = volume.affine.copy()
    affine[:3, 3] += volume.affine[:3, :3] @ ((factors - 1) / 2)
    affine[:3, :3] *= factors
    return Volume(slices, affine)


def smooth(volume: Volume, fwhm_mm: float) -> Volume:
    """Blur by a Gaussian of the full width at half maximum given, in mm along every axis; ends are mirrored."""
    return Volume(blur(volume.array, fwhm_mm * SIGMA_PER_FWHM / spacing_of(volume.affine)), volume.affine)


def blur(array: NDArray[np.float32], sigmas: NDArray[np.float64]) -> NDArray[np.float32]:
    """Blur a (k, j, i) array by a Gaussian; sigmas in voxels along k, j and i, nothing done below 0.2."""
    k, j, i = array.shape
    result = np.array(array, dtype=np.float32, order="C")
    along_k, along_j, along_i = (_gaussian(float(sigma)) for sigma in sigmas)
    if len(along_j) > 1 or len(along_i) > 1:
        for plane in result:
            plane[:] = cv2.sepFilter2D(plane, -1, along_i, along_j, borderType=cv2.BORDER_REFLECT)
    if len(along_k) > 1:
        flat = result.reshape(k, j * i)
        flat[:] = cv2.sepFilter2D(flat, -1, np.ones(1, np.float32), along_k, borderType=cv2.BORDER_REFLECT)
    return result


def _gaussian(sigma: float) -> NDArray[np.float32]:
    """Return a normalised Gaussian kernel reaching to three sigmas."""
    if sigma < 0.2:
        return np.ones(1, dtype=np.float32)
    reach = int(np.ceil(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return np.asarray(kernel / kernel.sum(), dtype=np.float32)


def find_foreground(volume: Volume, role: str) -> tuple[float, NDArray[np.float64], NDArray[np.float32]]:
    """Find what is not air, looking every 4 mm.

    Returns
    -------
    threshold : float
    points : (n, 3) float64, LPS mm
    values : (n,) float32
        The intensity at each point.

    Raises
    ------
    EmptyVolumeError
        If less than 20 ml is above the threshold.
    InvalidVolumeError
        If what is above it is not above 0.
    """
    k, j, i = steps = np.maximum(1, np.floor(LOOKED_AT_MM / volume.spacing_mm + 1e-3)).astype(np.int64)
    array = volume.array[::k, ::j, ::i]
    threshold = FOREGROUND_SHARE_OF_OTSU * otsu(array)
    index = np.argwhere(array > threshold)
    size_mm3 = len(index) * abs(float(np.linalg.det(volume.affine[:3, :3] * steps)))
    if size_mm3 < SMALLEST_FOREGROUND_MM3:
        raise EmptyVolumeError(
            f"{role} volume holds {size_mm3 / 1000:.1f} ml of signal, {SMALLEST_FOREGROUND_MM3 / 1000:.0f} ml needed"
        )
    values = array[tuple(index.T)]
    if not np.percentile(values, BRIGHT_PERCENT) > 0:
        raise InvalidVolumeError(f"{role} volume holds no intensity above 0 in the head, {values.max():g} at most")
    return threshold, (index * steps) @ volume.affine[:3, :3].T + volume.affine[:3, 3], values


def otsu(array: NDArray[np.float32]) -> float:
    """Return the threshold that best splits the values in two, from 0 (or the lowest) to the 99.5th percentile.

    Sources
    -------
    Otsu 1979, doi:10.1109/TSMC.1979.4310076.
    """
    low, high = min(0.0, float(array.min())), float(np.percentile(array, 99.5))
    if high <= low:
        high = float(array.max())
    counts, edges = np.histogram(array, bins=256, range=(low, high))
    middles = (edges[:-1] + edges[1:]) / 2
    below, moments = np.cumsum(counts), np.cumsum(counts * middles)
    above = below[-1] - below
    valid = (below > 0) & (above > 0)
    spread = np.zeros(256)
    mean_below = moments[valid] / below[valid]
    mean_above = (moments[-1] - moments[valid]) / above[valid]
    spread[valid] = below[valid].astype(float) * above[valid] * (mean_above - mean_below) ** 2
    return float(middles[spread >= spread.max() * (1 - 1e-9)].mean())  # the middle of an empty gap
