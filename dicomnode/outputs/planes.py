"""Planes through a volume as pictures, cut in patient coordinates: how the slices were acquired does not show.

Flow: report > [planes]
Never: a whole volume: values are read where a plane passes, and every few millimetres to set a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from registration.volume import Volume

Points = NDArray[np.float64]
Picture = NDArray[np.float32]  # (rows, columns) of one plane

SIZE_PX = 240
PIXEL_MM = 1.0
THIN_MM = 4.0
LETTERS = (("R", "L"), ("A", "P"), ("I", "S"))  # the low and the high end of x, y and z in LPS


@dataclass(frozen=True, eq=False)
class Plane:
    """A square cut through patient coordinates, looked at as radiologists do.

    Attributes
    ----------
    name : str
    right, down : int
        The LPS axis along which the picture's columns and rows run, 0 to 2.
    is_upright : bool
        Whether rows run against their axis: the head's top is up.
    centre_mm : (3,) float64, LPS mm
        The middle of the picture, between its middle pixels.
    """

    name: str
    right: int
    down: int
    is_upright: bool
    centre_mm: Points

    @property
    def letters(self) -> tuple[str, str, str, str]:
        """What lies towards the picture's left, right, top and bottom: R, L, A, P, S or I."""
        left, right = LETTERS[self.right]
        top, bottom = LETTERS[self.down][:: -1 if self.is_upright else 1]
        return left, right, top, bottom

    def points_mm(self) -> Points:
        """Return where each pixel's centre lies: (SIZE_PX, SIZE_PX, 3) float64, LPS mm."""
        offsets = (np.arange(SIZE_PX) - (SIZE_PX - 1) / 2) * PIXEL_MM
        points = np.tile(self.centre_mm, (SIZE_PX, SIZE_PX, 1))
        points[..., self.right] += offsets[None, :]
        points[..., self.down] += self._down_sign * offsets[:, None]
        return points

    def to_pixels(self, points_mm: Points) -> tuple[Points, Points]:
        """Return where (n, 3) points in LPS mm are drawn: (n, 2) x and y in pixels; and (n,) mm from the plane."""
        away = points_mm - self.centre_mm
        x, y = away[:, self.right] / PIXEL_MM, self._down_sign * away[:, self.down] / PIXEL_MM
        across = 3 - self.right - self.down
        return np.column_stack([x, y]) + (SIZE_PX - 1) / 2, np.abs(away[:, across])

    @property
    def _down_sign(self) -> float:
        return -1.0 if self.is_upright else 1.0


def make_planes(centre_mm: Points) -> tuple[Plane, Plane, Plane]:
    """Return the axial, coronal and sagittal plane through a point, (3,) LPS mm.

    The radiological convention: the patient's left is on the right of axial and coronal pictures, the face is at the
    top of axial and on the left of sagittal ones, the head's top is up.
    """
    return (
        Plane("axial", right=0, down=1, is_upright=False, centre_mm=centre_mm),
        Plane("coronal", right=0, down=2, is_upright=True, centre_mm=centre_mm),
        Plane("sagittal", right=1, down=2, is_upright=True, centre_mm=centre_mm),
    )


def sample_linear(volume: Volume, points_mm: Points) -> NDArray[np.float32]:
    """Read a volume between its voxels.

    Parameters
    ----------
    volume : Volume
    points_mm : (..., 3) float64
        In the volume's own LPS mm.

    Returns
    -------
    (...) float32
        Trilinear between the eight neighbours; not a number outside the field of view, which ends half a voxel beyond
        the outermost centres.
    """
    last = np.array(volume.shape) - 1
    index = points_mm @ volume.index_from_mm[:3, :3].T + volume.index_from_mm[:3, 3]
    is_outside = ((index < -0.5) | (index > last + 0.5)).any(axis=-1)
    index = np.clip(index, 0, last)
    low = np.floor(index).astype(np.intp)
    ends = low, np.minimum(low + 1, last)
    shares = 1 - (index - low), index - low
    values = np.zeros(index.shape[:-1])
    for corner in product((0, 1), repeat=3):
        k, j, i = (ends[end][..., axis] for axis, end in enumerate(corner))
        values += np.prod([shares[end][..., axis] for axis, end in enumerate(corner)], axis=0) * volume.array[k, j, i]
    values[is_outside] = np.nan
    return values.astype(np.float32)


def thin(volume: Volume) -> Volume:
    """Return every so many voxels of a volume, as near 4 mm apart as it goes without passing it; nothing is copied."""
    k, j, i = (max(1, int(THIN_MM / step + 1e-3)) for step in volume.spacing_mm)
    return Volume(volume.array[::k, ::j, ::i], volume.affine @ np.diag([k, j, i, 1.0]))
