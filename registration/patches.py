"""64x64 patches round points, in three planes, which are the network's three channels: step 2 of the method.

Flow: keypoints > [patches] > descriptors; models/train cuts its samples here too
Never: interpolation; points are whole voxels of the working grid.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PATCH_VOXELS = 64
HALF = PATCH_VOXELS // 2


def pad_for_patches(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a (k, j, i) array with half a patch of zeros on every side, so that no patch leaves it."""
    return np.pad(array, HALF)


def cut_patches(padded: NDArray[np.float32], index: NDArray[np.int64]) -> NDArray[np.float32]:
    """Cut the axial, coronal and sagittal patch round each point.

    Parameters
    ----------
    padded : (k, j, i) float32
        From `pad_for_patches`.
    index : (n, 3) int64
        Voxel k, j, i in the array before padding.

    Returns
    -------
    (n, 3, 64, 64) float32
        The point is at row and column 32. Rows and columns run along j and i (axial), k and i (coronal), k and j
        (sagittal).
    """
    patches = np.empty((len(index), 3, PATCH_VOXELS, PATCH_VOXELS), dtype=np.float32)
    for patch, (k, j, i) in zip(patches, index.tolist(), strict=True):
        patch[0] = padded[k + HALF, j : j + PATCH_VOXELS, i : i + PATCH_VOXELS]
        patch[1] = padded[k : k + PATCH_VOXELS, j + HALF, i : i + PATCH_VOXELS]
        patch[2] = padded[k : k + PATCH_VOXELS, j : j + PATCH_VOXELS, i + HALF]
    return patches
