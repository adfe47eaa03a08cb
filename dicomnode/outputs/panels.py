"""What every picture of a registration is drawn with: rows and columns of tiles, words, chequerboards, outlines.

Flow: report | demo/picture > [panels] > a PNG's bytes
Never: a volume, a transform, a header: images come in and go out, (rows, columns, 3) uint8 in OpenCV's order BGR.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Colour = tuple[int, int, int]

GAP_PX = 4
HEADING_PX = 56
MARGIN_PX = 86
INK: Colour = (235, 235, 235)
FAINT: Colour = (165, 165, 165)
OUTLINE: Colour = (40, 220, 255)
FONT = cv2.FONT_HERSHEY_SIMPLEX
HOLE_PX = 15  # gaps up to this wide are closed before an outline is drawn


def arrange(columns: Sequence[tuple[str, str]], rows: Sequence[tuple[str, Sequence[Image]]]) -> Image:
    """Lay tiles out, with a title and a subtitle above each column and a name beside each row.

    Parameters
    ----------
    columns : sequence of (title, subtitle)
    rows : sequence of (name, tiles)
        One tile of (size, size, 3) a column, all of one size.

    Returns
    -------
    (rows, columns, 3) uint8, BGR
        Tile (row, column) begins at `place_of(row, column, size)`.
    """
    size = rows[0][1][0].shape[0]
    bottom, right = place_of(len(rows), len(columns), size)
    picture = np.zeros((bottom, right, 3), np.uint8)
    for number, (title, subtitle) in enumerate(columns):
        left = place_of(0, number, size)[1] + 6
        write(picture, title, (left, 24), 0.62, INK)
        write(picture, subtitle, (left, 45), 0.44, FAINT)
    for row, (name, tiles) in enumerate(rows):
        write(picture, name, (8, place_of(row, 0, size)[0] + size // 2), 0.5, INK)
        for column, tile in enumerate(tiles):
            top, left = place_of(row, column, size)
            picture[top : top + size, left : left + size] = tile
    return picture


def place_of(row: int, column: int, size_px: int) -> tuple[int, int]:
    """Return where `arrange` puts a tile: its first row and column of pixels."""
    return HEADING_PX + row * (size_px + GAP_PX), MARGIN_PX + column * (size_px + GAP_PX)


def write(image: Image, text: str, place: tuple[int, int], scale: float, colour: Colour) -> None:
    """Write one line into an image, in place; `place` is the x and y of the text's left end on its base line."""
    cv2.putText(image, text, place, FONT, scale, colour, 1, cv2.LINE_AA)


def chequer(one: Image, other: Image, square_px: int) -> Image:
    """Take the squares of a chequerboard in turn from two images of one shape; the first one is `one`'s."""
    row, column = np.indices(one.shape[:2]) // square_px
    return np.asarray(np.where(((row + column) % 2 == 0)[..., None], one, other), np.uint8)


def outline(image: Image, inside: NDArray[np.bool_], colour: Colour = OUTLINE) -> Image:
    """Return an image with the outer edge of a (rows, columns) mask drawn on it, one pixel wide."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (HOLE_PX, HOLE_PX))
    closed = cv2.morphologyEx(inside.astype(np.uint8), cv2.MORPH_CLOSE, kernel)
    contours, _ = cv2.findContours(closed, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return np.asarray(cv2.drawContours(image.copy(), contours, -1, colour, 1), np.uint8)


def encode_png(image: Image, compression: int) -> bytes:
    """Return a PNG file's bytes; `compression` is 0 (fast) to 9 (small)."""
    is_encoded, content = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, compression])
    if not is_encoded:
        raise OSError(f"OpenCV could not encode a picture of shape {image.shape}")
    return bytes(content.tobytes())
