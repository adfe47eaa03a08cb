"""The fused picture: the moving volume's uptake in colour over the fixed volume in grey.

Flow: outputs > [fusion]
Never: geometry; both arrays already lie on one grid.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from registration.errors import InvalidVolumeError

FIXED_WINDOW_PERCENT = (1.0, 99.0)
MOVING_TOP_PERCENT = 99.5
MOVING_TRANSPARENT_BELOW = 0.12  # share of the top under which uptake is not painted at all
MOVING_OPAQUE_ABOVE = 0.35  # share of the top from which the full opacity is used
COLOUR_MAP = cv2.COLORMAP_INFERNO  # perceptually uniform: lightness grows evenly with the value
SAMPLES = 500_000  # voxels looked at for a window


def fuse(fixed: NDArray[np.float32], moving_on_fixed: NDArray[np.float32], *, opacity: float) -> NDArray[np.uint8]:
    """Paint the moving volume over the fixed one.

    Parameters
    ----------
    fixed, moving_on_fixed : (k, j, i) float32
        On the same grid; the moving one is 0 outside its field of view.
    opacity : float
        0 (fixed alone) to 1; it fades out where there is hardly any uptake.

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
    low, high = window(fixed, *FIXED_WINDOW_PERCENT)
    _, top = window(np.maximum(moving_on_fixed, 0), 0.0, MOVING_TOP_PERCENT)
    table = cv2.applyColorMap(np.arange(256, dtype=np.uint8), COLOUR_MAP).reshape(256, 3)[:, ::-1]
    fused = np.empty((*fixed.shape, 3), dtype=np.uint8)
    for k in range(fixed.shape[0]):
        grey = np.clip((fixed[k] - low) / (high - low), 0, 1) * 255
        uptake = np.clip(moving_on_fixed[k] / top, 0, 1)
        ramp = (uptake - MOVING_TRANSPARENT_BELOW) / (MOVING_OPAQUE_ABOVE - MOVING_TRANSPARENT_BELOW)
        alpha = (opacity * np.clip(ramp, 0, 1))[..., None]
        colour = table[np.rint(uptake * 255).astype(np.uint8)]
        fused[k] = np.rint(grey[..., None] * (1 - alpha) + colour * alpha)
    return fused


def window(array: NDArray[np.float32], low_percent: float, high_percent: float) -> tuple[float, float]:
    """Return the display window of an array: percentiles of what differs from its lowest value, low < high."""
    flat = array.reshape(-1)
    flat = flat[:: max(1, flat.size // SAMPLES)]
    flat = flat[np.isfinite(flat)]
    inside = flat[flat > flat.min()] if flat.size else flat
    if inside.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(inside, [low_percent, high_percent])
    return float(low), float(max(high, low + 1e-6 * max(1.0, abs(low))))
