"""The fused picture: the moving volume's uptake in colour over the fixed volume in grey.

Flow: outputs > [fusion]
Never: geometry; both arrays already lie on one grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from registration.errors import InvalidVolumeError
from registration.preprocess import FOREGROUND_SHARE_OF_OTSU, otsu

FIXED_WINDOW_PERCENT = (1.0, 99.0)
MOVING_TOP_PERCENT = 99.5
MOVING_TRANSPARENT_BELOW = 0.12  # share of the top under which uptake is not painted at all
MOVING_OPAQUE_ABOVE = 0.35  # share of the top from which the full opacity is used
# All but the last are perceptually uniform: lightness grows evenly with the value.
COLOUR_MAPS: Mapping[str, int] = {
    "inferno": cv2.COLORMAP_INFERNO,
    "magma": cv2.COLORMAP_MAGMA,
    "plasma": cv2.COLORMAP_PLASMA,
    "viridis": cv2.COLORMAP_VIRIDIS,
    "cividis": cv2.COLORMAP_CIVIDIS,
    "hot": cv2.COLORMAP_HOT,
}
COLOUR_MAP = "inferno"
LOOKED_AT = 128  # voxels along each axis, at most, for a window


@dataclass(frozen=True)
class Windows:
    """What is shown black and what white or brightest, each in its volume's own unit."""

    fixed_low: float
    fixed_high: float
    moving_top: float  # 0 is the moving volume's black


def find_windows(fixed: NDArray[np.float32], moving_on_fixed: NDArray[np.float32]) -> Windows:
    """Find display windows that neither air nor a few bright voxels decide: percentiles inside the head.

    Parameters
    ----------
    fixed, moving_on_fixed : (k, j, i) float32
        On the same grid; the moving one is 0 outside its field of view.

    Returns
    -------
    Windows
        Of the fixed volume inside the head; of the moving one, of what has uptake there. Where it has none, of wherever
        it has.
    """
    few, uptake = _thin(fixed), _thin(moving_on_fixed)
    head = find_head(few)
    low, high = window(few[head], *FIXED_WINDOW_PERCENT)
    inside = uptake[head & (uptake > 0)]
    _, top = window(inside if inside.size else uptake[uptake > 0], 0.0, MOVING_TOP_PERCENT)
    return Windows(low, high, top)


def find_head(fixed: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Tell, (k, j, i), what lies in the head: what is no air, and what that encloses in its slice; specks left out."""
    tissue = (fixed > FOREGROUND_SHARE_OF_OTSU * otsu(fixed)).astype(np.uint8)
    head = np.zeros_like(tissue)
    for k, slice_ in enumerate(tissue):
        opened = cv2.morphologyEx(slice_, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
        outlines, _ = cv2.findContours(opened, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        head[k] = cv2.drawContours(np.zeros_like(slice_), outlines, -1, 1, cv2.FILLED)
    return head.astype(bool) if head.any() else tissue.astype(bool)


def fuse(
    fixed: NDArray[np.float32],
    moving_on_fixed: NDArray[np.float32],
    windows: Windows,
    *,
    opacity: float,
    colour_map: str = COLOUR_MAP,
) -> NDArray[np.uint8]:
    """Paint the moving volume over the fixed one.

    Parameters
    ----------
    fixed, moving_on_fixed : (k, j, i) float32
        On the same grid; the moving one is 0 outside its field of view.
    windows : Windows
    opacity : float
        0 (fixed alone) to 1; it fades out where there is hardly any uptake.
    colour_map : str
        One of `COLOUR_MAPS`.

    Returns
    -------
    (k, j, i, 3) uint8, RGB

    Raises
    ------
    InvalidVolumeError
        If the shapes differ or the opacity is not within 0 to 1.
    """
    if fixed.ndim != 3 or fixed.shape != moving_on_fixed.shape:
        raise InvalidVolumeError(f"shapes {fixed.shape} and {moving_on_fixed.shape}, the same three axes needed")
    if not 0.0 <= opacity <= 1.0:
        raise InvalidVolumeError(f"opacity {opacity}, 0 to 1 needed")
    table = make_colours(colour_map)
    fused = np.empty((*fixed.shape, 3), dtype=np.uint8)
    for k in range(fixed.shape[0]):
        grey = np.clip((fixed[k] - windows.fixed_low) / (windows.fixed_high - windows.fixed_low), 0, 1) * 255
        uptake = np.clip(moving_on_fixed[k] / windows.moving_top, 0, 1)
        ramp = (uptake - MOVING_TRANSPARENT_BELOW) / (MOVING_OPAQUE_ABOVE - MOVING_TRANSPARENT_BELOW)
        alpha = (opacity * np.clip(ramp, 0, 1))[..., None]
        colour = table[np.rint(uptake * 255).astype(np.uint8)]
        fused[k] = np.rint(grey[..., None] * (1 - alpha) + colour * alpha)
    return fused


def make_colours(colour_map: str) -> NDArray[np.uint8]:
    """Return the (256, 3) RGB colours of one of `COLOUR_MAPS`, from nothing to the brightest."""
    colours = cv2.applyColorMap(np.arange(256, dtype=np.uint8), COLOUR_MAPS[colour_map])
    return np.asarray(colours.reshape(256, 3)[:, ::-1], np.uint8)


def window(values: NDArray[np.float32], low_percent: float, high_percent: float) -> tuple[float, float]:
    """Return two percentiles of the values, the second above the first; 0 and 1 where there are none."""
    if values.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(values, [low_percent, high_percent])
    return float(low), float(max(high, low + 1e-6 * max(1.0, abs(low))))


def _thin(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return every so many voxels along each axis, the same of every array of one shape; nothing is copied."""
    k, j, i = (-(-size // LOOKED_AT) for size in array.shape)
    return array[::k, ::j, ::i]
