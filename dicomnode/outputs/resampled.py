"""The PET on the MR's grid, and how both are shown: what all images of one registration are made from.

Flow: request > [resampled] > pet|fused|multiframe|blending
Never: a header; a data set.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicomnode.outputs.contributions import find_contributing
from dicomnode.outputs.request import OutputRequest
from registration.fusion import Windows, find_windows, fuse
from registration.resample import resample


@dataclass(frozen=True, eq=False)
class Resampled:
    """A PET on the MR's grid.

    Attributes
    ----------
    values : (k, j, i) float32
        In the PET's own unit; 0 outside its field of view.
    contributing : list of range
        Per MR slice, the PET slices it was made of.
    windows : Windows
        How MR and PET are shown, found inside the head.
    """

    values: NDArray[np.float32]
    contributing: list[range]
    windows: Windows


def resample_moving(request: OutputRequest) -> Resampled:
    """Carry the PET over onto the MR's grid by cubic B-splines."""
    fixed, moving = request.fixed.volume, request.moving.volume
    values = resample(moving, fixed, request.fixed_from_moving)
    contributing = find_contributing(fixed, moving, request.fixed_from_moving)
    return Resampled(values, contributing, find_windows(fixed.array, values))


def make_colours(request: OutputRequest, resampled: Resampled) -> NDArray[np.uint8]:
    """Paint the PET over the MR as the settings say: (k, j, i, 3) uint8, RGB."""
    return fuse(
        request.fixed.volume.array,
        resampled.values,
        resampled.windows,
        opacity=request.settings.opacity,
        colour_map=request.settings.colour_map,
    )
