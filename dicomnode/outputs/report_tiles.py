"""The tiles of the report: each plane through the head drawn in the seven ways of COLUMNS.

Flow: report > [report_tiles] > planes, panels
Never: a whole volume resampled; words, but for the letters that say which side is which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dicomnode.outputs.panels import INK, Colour, Image, chequer, outline, write
from dicomnode.outputs.planes import PIXEL_MM, SIZE_PX, Picture, Plane, make_planes, sample_linear, thin
from registration.evidence import RIGHT_MATCH_MM
from registration.fusion import FIXED_WINDOW_PERCENT, MOVING_TOP_PERCENT, Windows, find_head, fuse, make_colours, window
from registration.pipeline import Registration
from registration.preprocess import prepare_fixed
from registration.volume import Volume

COLUMNS = (
    ("MR", "fixed: it stays"),
    ("PET before", "by its header; yellow: head of the MR"),
    ("PET after", "registered; yellow: head of the MR"),
    ("fused", "PET in colour on MR"),
    ("chequerboard", "MR and, in colour, PET after"),
    ("PET contours on MR", ""),  # the report writes what their colours mean
    ("matches", ""),
)
CHEQUER_PX = 30
# Contours of the PET: share of its white level, and colour.
CONTOURS: Sequence[tuple[float, Colour]] = ((0.25, (230, 200, 60)), (0.55, (60, 90, 255)))
CONTOUR_BLUR_PX = 1.5
HEAD_BLUR_PX = 2.1  # 5 mm at half height, as in the volume that the threshold is for
SLAB_MM = 15.0  # matches this near a plane are drawn on it
DIM = 0.6
NEAR: Colour = (240, 200, 70)
FAR: Colour = (40, 130, 255)
OUTSIDE: Colour = (52, 40, 34)  # where a volume ends
LETTER: Colour = (120, 230, 140)
BAR_MM = 50
SUBPIXEL_BITS = 4


@dataclass(frozen=True, eq=False)
class Cut:
    """What one plane through both volumes shows.

    Attributes
    ----------
    plane : Plane
    mr, before, after : (SIZE_PX, SIZE_PX, 3) uint8, BGR
        In grey; `before` is the PET by its header alone, `after` under the registration's transform.
    fused : (SIZE_PX, SIZE_PX, 3) uint8, BGR
    is_head : (SIZE_PX, SIZE_PX) bool
        Above the MR's threshold of the foreground.
    uptake : (SIZE_PX, SIZE_PX) float32
        Of the PET after, as a share of its white level.
    """

    plane: Plane
    mr: Image
    before: Image
    after: Image
    fused: Image
    is_head: NDArray[np.bool_]
    uptake: Picture


def cut_planes(fixed: Volume, moving: Volume, registration: Registration, opacity: float, colour_map: str) -> list[Cut]:
    """Cut both volumes by the axial, coronal and sagittal plane through the middle of the fixed head.

    Parameters
    ----------
    fixed, moving : Volume
        As they were registered, LPS mm.
    registration : Registration
    opacity, colour_map
        Of the PET in the fused pictures, as `fuse` takes them.

    Raises
    ------
    EmptyVolumeError
        If the fixed volume holds no head; one that was registered does.
    """
    few, uptake = thin(fixed), thin(moving).array
    head = prepare_fixed(few)
    grey = window(few.array[find_head(few.array)], *FIXED_WINDOW_PERCENT)
    _, white = window(uptake[uptake > 0], 0.0, MOVING_TOP_PERCENT)
    planes = make_planes(head.centre_mm)
    points = [plane.points_mm() for plane in planes]
    mr = [sample_linear(fixed, here) for here in points]
    moving_from_fixed = registration.fixed_from_moving.inverse()
    after = [sample_linear(moving, moving_from_fixed.apply(here)) for here in points]
    fused = fuse(
        np.nan_to_num(np.stack(mr)),
        np.nan_to_num(np.stack(after)),
        Windows(*grey, white),
        opacity=opacity,
        colour_map=colour_map,
    )[..., ::-1]
    return [
        Cut(
            plane,
            mr=_grey(mr[n], *grey),
            before=_grey(sample_linear(moving, points[n]), 0.0, white),
            after=_grey(after[n], 0.0, white),
            fused=fused[n],
            is_head=_blur(mr[n], HEAD_BLUR_PX) > head.threshold,
            uptake=_blur(after[n], CONTOUR_BLUR_PX) / np.float32(white),
        )
        for n, plane in enumerate(planes)
    ]


def draw_tiles(cut: Cut, registration: Registration, colour_map: str) -> list[Image]:
    """Draw one plane in the ways of COLUMNS, each with letters that say which side is which."""
    colours = make_colours(colour_map)[:, ::-1][cut.after[..., 0]]
    hot = np.where((cut.after == OUTSIDE).all(axis=2)[..., None], cut.after, colours)
    tiles = [
        _draw_bar(cut.mr),
        outline(cut.before, cut.is_head),
        outline(cut.after, cut.is_head),
        cut.fused,
        chequer(cut.mr, np.asarray(hot, np.uint8), CHEQUER_PX),
        _draw_contours(cut),
        _draw_matches(cut, registration),
    ]
    return [_mark(tile, cut.plane) for tile in tiles]


def find_near(registration: Registration) -> NDArray[np.bool_]:
    """Tell, (n,), which matches end within 12 mm of their key point under the final transform."""
    landed_mm = registration.fixed_from_moving.apply(registration.matches.moving)
    return np.asarray(np.linalg.norm(landed_mm - registration.matches.fixed, axis=1) <= RIGHT_MATCH_MM)


def _draw_contours(cut: Cut) -> Image:
    image = cut.mr.copy()
    for share, colour in CONTOURS:
        found, _ = cv2.findContours((cut.uptake > share).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(image, found, -1, colour, 1)
    return image


def _draw_matches(cut: Cut, registration: Registration) -> Image:
    """Draw each match near the plane: a dot at the key point, and a line to where its candidate lands."""
    image = np.asarray(cut.mr * DIM, np.uint8)
    is_near = find_near(registration)
    starts, away_mm = cut.plane.to_pixels(registration.matches.fixed)
    ends, _ = cut.plane.to_pixels(registration.fixed_from_moving.apply(registration.matches.moving))
    shown = np.flatnonzero(away_mm <= SLAB_MM)
    for n in sorted(shown, key=lambda n: bool(is_near[n])):  # the near ones on top
        colour = NEAR if is_near[n] else FAR
        start, end = (np.rint(at[n] * 2**SUBPIXEL_BITS).astype(int).tolist() for at in (starts, ends))
        cv2.line(image, start, end, colour, 1, cv2.LINE_AA, SUBPIXEL_BITS)
        cv2.circle(image, start, 2 << SUBPIXEL_BITS, colour, -1, cv2.LINE_AA, SUBPIXEL_BITS)
    return image


def _draw_bar(image: Image) -> Image:
    """Draw how long 50 mm are, in the lower left corner."""
    drawn, y = image.copy(), SIZE_PX - 6
    cv2.line(drawn, (8, y), (8 + round(BAR_MM / PIXEL_MM), y), INK, 1)
    write(drawn, f"{BAR_MM} mm", (8, y - 5), 0.36, INK)
    return drawn


def _mark(tile: Image, plane: Plane) -> Image:
    """Write what lies towards each side of a picture: R, L, A, P, S or I."""
    marked, middle = tile.copy(), SIZE_PX // 2
    places = (4, middle + 5), (SIZE_PX - 13, middle + 5), (middle - 4, 14), (middle - 4, SIZE_PX - 5)
    for letter, place in zip(plane.letters, places, strict=True):
        write(marked, letter, place, 0.44, LETTER)
    return marked


def _grey(values: Picture, low: float, high: float) -> Image:
    """Show values from black to white; what is not a number lies outside the field of view."""
    share = np.clip((np.nan_to_num(values) - low) / (high - low), 0, 1)
    image = np.repeat(np.rint(share * 255).astype(np.uint8)[..., None], 3, axis=2)
    image[np.isnan(values)] = OUTSIDE
    return image


def _blur(values: Picture, sigma_px: float) -> Picture:
    return np.asarray(cv2.GaussianBlur(np.nan_to_num(values), (0, 0), sigma_px), np.float32)
