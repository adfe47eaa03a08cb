"""64x64 patches round points, in the planes that become the network's three channels: step 2 of the method.

Flow: keypoints > [patches] > descriptors; models/train cuts its samples here too
Never: interpolation; points are whole voxels of the working grid.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PATCH_VOXELS = 64
HALF = PATCH_VOXELS // 2
CHANNELS = 3


def pad_for_patches(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a (k, j, i) array with half a patch of zeros on every side, so that no patch leaves it."""
    return np.pad(array, HALF)


def cut_patches(
    padded: NDArray[np.float32], index: NDArray[np.int64], planes: tuple[int, ...] = (0, 1, 2)
) -> NDArray[np.float32]:
    """Cut a patch round each point in every plane.

    Parameters
    ----------
    padded : (k, j, i) float32
        From `pad_for_patches`.
    index : (n, 3) int64
        Voxel k, j, i in the array before padding.
    planes : tuple of int
        0 axial, 1 coronal, 2 sagittal; fewer than three are repeated until all channels are filled.

    Returns
    -------
    (n, 3, 64, 64) float32
        The point is at row and column 32. Rows and columns run along j and i (axial), k and i (coronal), k and j
        (sagittal).
    """
    patches = np.empty((len(index), CHANNELS, PATCH_VOXELS, PATCH_VOXELS), dtype=np.float32)
    for patch, place in zip(patches, index.tolist(), strict=True):
        for channel in range(CHANNELS):
            plane = planes[channel % len(planes)]
            window = [slice(at, at + PATCH_VOXELS) for at in place]
            patch[channel] = padded[(*window[:plane], place[plane] + HALF, *window[plane + 1 :])]
    return patches
