"""A volume: an array and where its voxels lie in patient coordinates.

Flow: the caller > [volume] > every step of the pipeline
Never: a file format; a change after construction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from registration.errors import InvalidVolumeError

SMALLEST_VOXEL_MM3 = 1e-9  # below this an affine counts as singular


@dataclass(frozen=True, eq=False)
class Volume:
    """Intensities on a regular grid in patient coordinates, read-only.

    Attributes
    ----------
    array : (k, j, i) float32
        Slice, row, column. Given as another type it is converted; given as float32 it is not copied.
    affine : (4, 4) float64
        `affine @ (k, j, i, 1)` is LPS mm; an integer index is the voxel's centre.

    Raises
    ------
    InvalidVolumeError
        If the array is not three-dimensional or empty, or the affine is not finite, not affine or singular.
    """

    array: NDArray[np.float32]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        array = np.asarray(self.array, dtype=np.float32).view()
        affine = np.array(self.affine, dtype=np.float64)
        if array.ndim != 3 or 0 in array.shape:
            raise InvalidVolumeError(f"array of shape {array.shape}, three axes with voxels needed")
        check_affine(affine)
        array.flags.writeable = False
        affine.flags.writeable = False
        object.__setattr__(self, "array", array)
        object.__setattr__(self, "affine", affine)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along k, j and i."""
        k, j, i = self.array.shape
        return k, j, i

    @property
    def spacing_mm(self) -> NDArray[np.float64]:
        """Distance between neighbouring voxel centres along k, j and i, (3,) float64."""
        return spacing_of(self.affine)

    @property
    def index_from_mm(self) -> NDArray[np.float64]:
        """The affine's inverse, (4, 4) float64: LPS mm to index."""
        return np.asarray(np.linalg.inv(self.affine), dtype=np.float64)

    @property
    def centre_mm(self) -> NDArray[np.float64]:
        """The middle of the grid, (3,) float64, LPS mm."""
        middle = (np.array(self.shape, dtype=np.float64) - 1) / 2
        return np.asarray(self.affine[:3, :3] @ middle + self.affine[:3, 3], dtype=np.float64)


def spacing_of(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distance in mm between neighbours along each index axis of an affine, (3,) float64."""
    return np.asarray(np.linalg.norm(affine[:3, :3], axis=0), dtype=np.float64)


def check_affine(affine: NDArray[np.float64]) -> None:
    """Raise InvalidVolumeError unless `affine` is (4, 4), finite, ends in (0, 0, 0, 1) and can be inverted."""
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise InvalidVolumeError(f"affine of shape {affine.shape}, a finite (4, 4) matrix needed")
    if not np.array_equal(affine[3], [0.0, 0.0, 0.0, 1.0]):
        raise InvalidVolumeError(f"last row of the affine is {affine[3].tolist()}, [0, 0, 0, 1] needed")
    volume_mm3 = abs(np.linalg.det(affine[:3, :3]))
    if volume_mm3 < SMALLEST_VOXEL_MM3:
        raise InvalidVolumeError(f"voxel of {volume_mm3:.3g} mm3, more than {SMALLEST_VOXEL_MM3:g} needed")
