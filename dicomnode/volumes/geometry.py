"""Slice positions and orientation become one affine, or the reason why they cannot.

Flow: checks > [geometry] > series
Never: headers, files or pixels; numbers in LPS mm go in, numbers come out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dicomnode.errors import SeriesRefusedError

Numbers = NDArray[np.float64]

# The rules of reading, each with where its figure comes from.
MIN_SLICES = 8  # our rule: fewer carry no 3-D structure to match
MIN_COVERAGE_MM = 80.0  # our rule: less than a child's brain along any axis
MAX_ORTHOGONALITY_ERROR = 2e-3  # PS3.3 C.7.6.2.1.1 wants orthonormal; cosines of 3 decimals can miss by 1.7e-3
MAX_ORIENTATION_DIFFERENCE = 1e-3  # the same, between the slices of one stack
REPEAT_MM = 0.05  # two slices nearer than this stand at one position; MR and PET slices are 0.3 mm or more apart
HEAD_MM = 350.0  # our rule: a head, a neck, and some room above; brain PET scanners see 260 mm at most
MAX_RESIDUAL = 0.1  # of the slice step: IPP against the fitted line
GAP_STEP = 1.5  # times the median step: wider is a hole, narrower is jitter
GAP_TOLERANCE = 0.2  # of the median step: a hole is a whole number of steps
MAX_GAP_SHARE = 0.1  # of the slices missing: more is not a hole but another spacing


@dataclass(frozen=True)
class SliceStack:
    """Where the slices of a series stand: `order` sorts them, `affine` places them."""

    order: NDArray[np.intp]  # (n,) index of the input slice at k
    affine: Numbers  # (4, 4): affine @ (k, j, i, 1) = LPS mm
    residual_mm: float  # largest distance of an ImagePositionPatient from its place on the fitted line


def fit_stack(
    positions: Numbers, orientation: Numbers, pixel_spacing_mm: Numbers, shape: tuple[int, int]
) -> SliceStack:
    """Order the slices along their normal and fit one affine through them, shear kept.

    Parameters
    ----------
    positions : (n, 3) float64, LPS mm
        ImagePositionPatient: the centre of each slice's first voxel. Any order.
    orientation : (6,) float64
        ImageOrientationPatient: direction of a row (towards larger i), then of a column (towards larger j).
    pixel_spacing_mm : (2,) float64
        PixelSpacing: between rows (j), then between columns (i).
    shape : (rows, columns)
        Size of every slice.

    Returns
    -------
    SliceStack
        k grows along row x column; the slice vector is the least-squares slope of the positions on k, so that a
        tilted or sheared stack keeps its shear.

    Raises
    ------
    SeriesRefusedError
        If the cosines are not orthonormal, slices are too few, repeat, miss, stand irregularly, or cover too little.

    Sources
    -------
    PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1.
    """
    row, column = _check_orientation(orientation)
    normal = np.cross(row, column)
    along = positions @ normal
    order = np.lexsort((*positions.T, along))
    _check_count(len(positions))
    _check_steps(np.diff(along[order]))
    origin, step, residual_mm = _fit_line(positions[order])
    step_mm = float(step @ normal)
    if residual_mm > MAX_RESIDUAL * step_mm:
        raise SeriesRefusedError(
            f"irregular slice spacing: a slice stands {residual_mm:.2f} mm from its place, at most "
            f"{MAX_RESIDUAL * step_mm:.2f} mm is allowed ({MAX_RESIDUAL:.0%} of the {step_mm:.2f} mm step)"
        )
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = column * pixel_spacing_mm[0]
    affine[:3, 2] = row * pixel_spacing_mm[1]
    affine[:3, 3] = origin
    _check_coverage(len(positions) * step_mm, shape[0] * pixel_spacing_mm[0], shape[1] * pixel_spacing_mm[1])
    return SliceStack(order, affine, residual_mm)


def count_at_places(positions: Numbers, orientation: Numbers) -> list[int]:
    """Count the slices at each distinct place along the normal, in its order; (n, 3) LPS mm and (6,) cosines in."""
    along = np.sort(positions @ np.cross(orientation[:3], orientation[3:]))
    ends = np.flatnonzero(np.diff(along) > REPEAT_MM) + 1
    return [int(count) for count in np.diff([0, *ends, len(along)])]


def crop_to_head(stack: SliceStack) -> SliceStack:
    """Keep the upper 350 mm of slices that run along the patient; the same stack where it is no longer than that.

    Notes
    -----
    In patient coordinates z grows towards the head, however the patient lies (PS3.3 C.7.6.2.1.1).
    """
    step = stack.affine[:3, 0]
    along_mm, count = abs(float(step[2])), len(stack.order)
    kept = math.ceil(HEAD_MM / along_mm) if along_mm > np.linalg.norm(step) / np.sqrt(2) else count
    if kept >= count:
        return stack
    first = count - kept if step[2] > 0 else 0
    affine = stack.affine.copy()
    affine[:3, 3] += first * step
    return replace(stack, order=stack.order[first : first + kept], affine=affine)


def _check_orientation(orientation: Numbers) -> tuple[Numbers, Numbers]:
    """Return unit row and column directions."""
    row, column = orientation[:3], orientation[3:]
    lengths = float(np.linalg.norm(row)), float(np.linalg.norm(column))
    product = float(row @ column)
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(product)) > MAX_ORTHOGONALITY_ERROR:
        raise SeriesRefusedError(
            f"ImageOrientationPatient is not orthonormal: lengths {lengths[0]:.4f} and {lengths[1]:.4f}, product "
            f"{product:.4f}; 1, 1 and 0 are needed within {MAX_ORTHOGONALITY_ERROR}"
        )
    return row / lengths[0], column / lengths[1]


def _check_count(count: int) -> None:
    if count < MIN_SLICES:
        noun = "slice" if count == 1 else "slices"
        raise SeriesRefusedError(f"{count} {noun}, at least {MIN_SLICES} are needed")


def _check_steps(steps_mm: Numbers) -> None:
    """Refuse slices that repeat a position or leave a hole; `steps_mm` are the sorted stack's distances."""
    if (repeats := int(np.count_nonzero(steps_mm <= REPEAT_MM))) > 0:
        first = int(np.argmax(steps_mm <= REPEAT_MM))
        raise SeriesRefusedError(
            f"{repeats} of {len(steps_mm) + 1} slices repeat a position (first at k={first + 1}); "
            "one slice a position is needed"
        )
    median_mm = float(np.median(steps_mm))
    wide = np.flatnonzero(steps_mm > GAP_STEP * median_mm)
    multiples = steps_mm[wide] / median_mm
    missing = int(np.round(multiples - 1).sum())
    is_whole = bool(np.all(np.abs(multiples - np.round(multiples)) <= GAP_TOLERANCE))
    if len(wide) and is_whole and missing <= max(1.0, MAX_GAP_SHARE * len(steps_mm)):
        at = int(wide[0])
        raise SeriesRefusedError(
            f"{missing} slice(s) missing: gap of {steps_mm[at]:.2f} mm after k={at}, "
            f"{float(steps_mm[:at].sum()):.1f} mm from the first slice; {median_mm:.2f} mm expected"
        )


def _fit_line(points: Numbers) -> tuple[Numbers, Numbers, float]:
    """Fit points[k] = origin + k * step by least squares; return both and the largest distance left."""
    k = np.arange(len(points), dtype=np.float64)
    centred = k - k.mean()
    step = centred @ points / (centred @ centred)
    origin = points.mean(axis=0) - k.mean() * step
    residuals = np.linalg.norm(points - origin - k[:, None] * step, axis=1)
    return origin, step, float(residuals.max())


def _check_coverage(slices_mm: float, rows_mm: float, columns_mm: float) -> None:
    if min(slices_mm, rows_mm, columns_mm) < MIN_COVERAGE_MM:
        raise SeriesRefusedError(
            f"covers {slices_mm:.1f} x {rows_mm:.1f} x {columns_mm:.1f} mm (slices x rows x columns), a head needs "
            f"{MIN_COVERAGE_MM:.0f} mm along each"
        )
