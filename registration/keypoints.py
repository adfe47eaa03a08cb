"""Step 1 of the method: SIFT key points in slices of three orientations, and a grid of candidates.

Flow: preprocess > [keypoints] > patches | descriptors
Never: SIFT's own orientation or scale as part of a descriptor; descriptors here are upright.

Sources: Lowe 2004, doi:10.1023/B:VISI.0000029664.99615.94.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from numpy.typing import NDArray

from registration.errors import TooFewPointsError
from registration.preprocess import CUBE_SPACING_MM, Cube
from registration.profiles import Profile

SLICE_STEP = 4
CELL_MM = 16.0
FINEST_GRID = 5  # voxels between neighbours along an axis; finer than that, candidates are the same place
CONTRAST = 0.015
EDGE = 12.0
FEWEST_POINTS = 12


def find_fixed_points(cube: Cube, count: int, profile: Profile) -> NDArray[np.int64]:
    """Find the best key points, spread over the head: (n, 3) int64 voxels, n <= count, best of each cell first.

    Raises
    ------
    TooFewPointsError
        If there are fewer than 12.
    """
    points, responses = find_sift_points(cube, profile.planes)
    if len(points) < FEWEST_POINTS:
        raise TooFewPointsError(f"{len(points)} key points in the fixed volume, {FEWEST_POINTS} needed")
    return spread(points, responses, count)


def find_moving_points(cube: Cube, count: int, profile: Profile) -> NDArray[np.int64]:
    """Find candidates inside tissue with uptake: three quarters on an even grid (or none), then the best SIFT points.

    Returns
    -------
    (n, 3) int64 voxels, n <= count

    Raises
    ------
    TooFewPointsError
        If there are fewer than 12.
    """
    on_grid = fill_evenly(cube.foreground, count * 3 // 4 if profile.has_grid else 0)
    points, responses = find_sift_points(cube, profile.planes)
    both = np.unique(np.concatenate([on_grid, spread(points, responses, count - len(on_grid))]), axis=0)
    if len(both) < FEWEST_POINTS:
        raise TooFewPointsError(f"{len(both)} candidates in the moving volume, {FEWEST_POINTS} needed")
    return both


def fill_evenly(foreground: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """Return the foreground's voxels on the finest body-centred grid that has at most `count` of them, (n, 3) int64."""
    for step in range(FINEST_GRID, max(foreground.shape)):
        half = step // 2
        corners = np.argwhere(foreground[::step, ::step, ::step]) * step
        centres = np.argwhere(foreground[half::step, half::step, half::step]) * step + half
        if len(corners) + len(centres) <= count:
            return np.concatenate([corners, centres]).astype(np.int64)
    return np.empty((0, 3), dtype=np.int64)


def find_sift_points(cube: Cube, planes: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Find SIFT key points in every fourth slice of the planes: 0 axial, 1 coronal, 2 sagittal.

    Returns
    -------
    points : (n, 3) int64
        The nearest voxel k, j, i; inside the foreground, each voxel once.
    responses : (n,) float64
    """
    image = np.rint(cube.array * 255).astype(np.uint8)
    slices = []
    for axis in planes:
        inside = np.flatnonzero(np.moveaxis(cube.foreground, axis, 0).any(axis=(1, 2)))
        slices += [(axis, int(at)) for at in inside if at % SLICE_STEP == SLICE_STEP // 2]

    def detect_in(axis: int, at: int) -> NDArray[np.float64]:
        return np.insert(detect(np.ascontiguousarray(image.take(at, axis=axis))), axis, at, axis=1)

    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda one: detect_in(*one), slices))
    stacked = np.concatenate(found) if found else np.empty((0, 4))
    points = np.clip(np.rint(stacked[:, :3]), 0, len(image) - 1).astype(np.int64)
    keep = cube.foreground[tuple(points.T)]
    points, responses = points[keep], stacked[keep, 3]
    order = np.lexsort((*points.T, -responses))
    points, responses = points[order], responses[order]
    _, first = np.unique(points, axis=0, return_index=True)
    first.sort()
    return points[first], responses[first]


def detect(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Detect SIFT key points in one slice: (n, 3) row, column (sub-pixel, integers at pixel centres), response."""
    sift = cv2.SIFT.create(contrastThreshold=CONTRAST, edgeThreshold=EDGE, enable_precise_upscale=True)
    return np.array([[p.pt[1], p.pt[0], p.response] for p in sift.detect(image, None)]).reshape(-1, 3)


def spread(points: NDArray[np.int64], responses: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Choose at most `count` points: the strongest of every 16 mm cell, then every second strongest, and so on."""
    cells = (points // round(CELL_MM / CUBE_SPACING_MM)) @ np.array([10_000, 100, 1])
    order = np.lexsort((-responses, cells))
    starts = np.flatnonzero(np.diff(cells[order], prepend=-1))
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = rank
    return points[np.lexsort((-responses, ranks))[:count]]
