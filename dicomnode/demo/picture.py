"""The picture of the demonstration: MR, PET before and after, the fusion, and a chequerboard, in three planes.

Flow: run > [picture] > outputs/panels > demo.png
Never: DICOM, a registration: it shows arrays that lie on the MR's grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicomnode.demo.shapes import Field
from dicomnode.outputs.panels import FAINT, Image, arrange, chequer, encode_png, outline, write

# A plane of a (k, j, i) array as an image, patient's left on the right as radiologists look at it.
Plane = Callable[[NDArray[np.generic]], NDArray[np.generic]]

TILE_PX = 236
FOOT_PX = 34
CHEQUER_PX = 26
BESIDE_MIDLINE_VOXELS = 24
ABOVE_MIDDLE_VOXELS = 4
LEVELS = 20  # of each channel, fewer than 256: noise that nobody sees would fill the file
BLACK = 0.05  # of white: the noise of air stays black


@dataclass(frozen=True)
class Panels:
    """What is shown, everything (k, j, i) on the MR's grid of sagittal slices.

    Attributes
    ----------
    mr, pet_before, pet_after : (k, j, i) float32
        `pet_before` is laid by its own header, `pet_after` is the series that came back.
    fused : (k, j, i, 3) uint8
        RGB, the series that came back.
    brain : (k, j, i) float32
        Share of brain, for the outline.
    planes : tuple of int
        The k, j and i of the planes that are shown.
    """

    mr: Field
    pet_before: Field
    pet_after: Field
    fused: NDArray[np.uint8]
    brain: Field
    planes: tuple[int, int, int]


COLUMNS = (
    ("MR", "T1, 1 mm"),
    ("PET as it came", "by its header"),
    ("PET on MR", "series 1 sent back"),
    ("fused", "series 2 sent back"),
    ("chequerboard", "MR and PET on MR"),
)


def write_picture(path: Path, panels: Panels, caption: str) -> None:
    """Write the PNG: three rows (axial, coronal, sagittal) of the five columns, and a caption below."""
    body = arrange(COLUMNS, [(name, _tiles(panels, plane)) for name, plane in _planes(panels.planes)])
    foot = np.zeros((FOOT_PX, body.shape[1], 3), np.uint8)
    write(foot, caption, (10, 20), 0.46, FAINT)
    path.write_bytes(encode_png(np.vstack([body, foot]), compression=9))


def choose_planes(brain: Field) -> tuple[int, int, int]:
    """Return the k, j and i of a sagittal, an axial and a coronal plane through the deep parts of a brain."""
    inside = np.argwhere(brain[::4, ::4, ::4] > 0.5) * 4
    k, j, i = (int(n) for n in np.median(inside, axis=0))
    return k + BESIDE_MIDLINE_VOXELS, j - ABOVE_MIDDLE_VOXELS, i


def _planes(planes: tuple[int, int, int]) -> list[tuple[str, Plane]]:
    k, j, i = planes
    return [
        ("axial", lambda a: a[:, j].swapaxes(0, 1)),
        ("coronal", lambda a: a[:, :, i].swapaxes(0, 1)),
        ("sagittal", lambda a: a[k]),
    ]


def _tiles(panels: Panels, plane: Plane) -> list[Image]:
    mr = _grey(plane(panels.mr), 1.08 * float(np.percentile(panels.mr[panels.brain > 0.5], 99.5)))
    hot = float(np.percentile(panels.pet_after[panels.brain > 0.5], 99))
    before, after = (_grey(plane(pet), hot) for pet in (panels.pet_before, panels.pet_after))
    brain = _tile(np.repeat(plane(panels.brain > 0.5)[..., None], 3, axis=2))[..., 0] > 0
    fused = _levels(plane(panels.fused)[..., ::-1].astype(np.float32) / np.float32(255))
    return [mr, outline(before, brain), outline(after, brain), _tile(fused), chequer(mr, after, CHEQUER_PX)]


def _grey(image: NDArray[np.generic], white: float) -> Image:
    """Show values from nearly nothing to `white` as grey, three channels."""
    return _tile(np.repeat(_levels(image.astype(np.float32) / np.float32(white))[..., None], 3, axis=2))


def _levels(share: Field) -> Image:
    """Turn shares of white into a few levels of 0 to 255."""
    shown = np.clip((share - BLACK) / (1 - BLACK), 0, 1)
    return np.asarray(np.rint(shown * (LEVELS - 1)) * (255 / (LEVELS - 1)), np.uint8)


def _tile(image: NDArray[np.generic]) -> Image:
    """Centre an image, one pixel a voxel, in a square tile."""
    cropped = image[:TILE_PX, :TILE_PX]
    tile = np.zeros((TILE_PX, TILE_PX, 3), np.uint8)
    top, left = ((TILE_PX - n) // 2 for n in cropped.shape[:2])
    tile[top : top + cropped.shape[0], left : left + cropped.shape[1]] = cropped
    return tile
