"""Patches as they would be if a volume were turned, stretched or mirrored round each place: trilinear, by OpenCV.

Flow: samples > [cutting] > samples
Never: a whole volume carried over; places are many and each turn serves a few of them.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from registration.patches import CHANNELS, HALF, PATCH_VOXELS
from registration.preprocess import CUBE_VOXELS

SIDE = CUBE_VOXELS + 2  # of a slice with a voxel of nothing on either side


def stack_slices(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lay a cube's slices one under another, a voxel of nothing round each: (k, j, i) to (130 * 130, 130)."""
    return np.pad(array, 1).reshape(SIDE * SIDE, SIDE)


def cut_turned(
    stacked: NDArray[np.float32],
    places: NDArray[np.float64],
    turned_back: NDArray[np.float64],
    planes: tuple[int, ...],
) -> NDArray[np.float32]:
    """Cut the patches round each place as they would be if the volume were turned.

    Parameters
    ----------
    stacked : (130 * 130, 130) float32
        The volume, from `stack_slices`.
    places : (n, 3) float64, voxels k, j, i
    turned_back : (r, 3, 3) float64
        Matrices that take a patch's own axes k, j, i to the volume's: the inverse of a turn, or any linear map. They
        serve the places in r groups of one size, in their order.
    planes : tuple of int
        As `registration.patches.cut_patches`.

    Returns
    -------
    (n, 3, 64, 64) float32
        The place is at row and column 32; outside the volume is 0.
    """
    offsets = _patch_offsets(planes)
    groups = places.astype(np.float32).reshape(len(turned_back), -1, 3)
    patches = np.empty((*groups.shape[:2], len(planes), PATCH_VOXELS, PATCH_VOXELS), dtype=np.float32)
    for group, matrix, cut in zip(groups, turned_back, patches, strict=True):
        around = offsets @ matrix.T.astype(np.float32)
        k, j, i = (
            (group[:, axis, None] + around[None, :, axis]).reshape(-1, PATCH_VOXELS * PATCH_VOXELS) for axis in range(3)
        )
        cut[:] = _sample(stacked, k, j, i).reshape(cut.shape)
    of_planes = patches.reshape(len(places), len(planes), PATCH_VOXELS, PATCH_VOXELS)
    return of_planes[:, [channel % len(planes) for channel in range(CHANNELS)]]


def _patch_offsets(planes: tuple[int, ...]) -> NDArray[np.float32]:
    """Return where a patch's samples lie about its place, plane by plane and row by row: (planes * 64 * 64, 3)."""
    axis = np.arange(PATCH_VOXELS, dtype=np.float32) - HALF
    row, column = (part.ravel() for part in np.meshgrid(axis, axis, indexing="ij"))
    nothing = np.zeros_like(row)
    of_plane = ((nothing, row, column), (row, nothing, column), (row, column, nothing))
    return np.concatenate([np.stack(of_plane[plane], axis=1) for plane in planes])


def _sample(
    stacked: NDArray[np.float32], k: NDArray[np.float32], j: NDArray[np.float32], i: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the trilinear values at voxels, all of one shape (rows, columns); 0 outside."""
    k, j = np.clip(k, -1, CUBE_VOXELS), np.clip(j, -1, CUBE_VOXELS)
    floor = np.minimum(np.floor(k), CUBE_VOXELS - 1)
    row, column = (floor + 1) * SIDE + (j + 1), i + 1
    below, above = (
        cv2.remap(stacked, column, at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
        for at in (row, row + SIDE)
    )
    return np.asarray(below + (k - floor) * (above - below))
