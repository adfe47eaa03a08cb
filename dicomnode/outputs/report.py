"""The picture by which a person judges one registration: three planes in seven ways, and the numbers in words.

Flow: cli/register > [report] > report_tiles, report_words, panels > report.png
Never: a header, a file's name, a date: it is given volumes and numbers, so nobody's identity can be drawn.

Pictures follow the radiological convention, as `planes.make_planes` says, however the slices were acquired.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from dicomnode.errors import StorageFailedError
from dicomnode.outputs.panels import FAINT, FONT, INK, Image, arrange, encode_png, place_of, write
from dicomnode.outputs.planes import SIZE_PX
from dicomnode.outputs.report_tiles import COLUMNS, CONTOURS, FAR, NEAR, SLAB_MM, cut_planes, draw_tiles, find_near
from dicomnode.outputs.report_words import (
    DOUBT,
    NOT_FOR_DIAGNOSIS,
    VERDICTS,
    Line,
    describe_run,
    describe_signals,
    describe_verdict,
)
from registration.evidence import RIGHT_MATCH_MM
from registration.fusion import COLOUR_MAP
from registration.pipeline import Registration
from registration.volume import Volume

REPORT = "report.png"
COMPRESSION = 4
HEADLINE_PX = 48
LINE_PX = 23
# The text below: where each block begins and its words stand, pixels; and how many characters a line of words has.
BLOCKS = ((12, 116, 78), (640, 92, 84), (1330, 116, 48))
LEGEND = (
    Line("matches", "dot: key point of the MR; line: to where its match in the PET now lies"),
    Line("", f"drawn where the key point is within {SLAB_MM:.0f} mm of the plane"),
    Line("grey-blue", "beyond the MR's or the PET's field of view"),
)


def write_report(
    path: Path,
    fixed: Volume,
    moving: Volume,
    registration: Registration,
    *,
    reason: str,
    opacity: float,
    colour_map: str = COLOUR_MAP,
) -> None:
    """Draw the report of a registration and write it as PNG: the file is there whole, or as it was before.

    Parameters
    ----------
    path : Path
    fixed, moving, registration, reason, opacity, colour_map
        As for `draw_report`.

    Raises
    ------
    StorageFailedError
        If the file cannot be written.
    """
    picture = draw_report(fixed, moving, registration, reason=reason, opacity=opacity, colour_map=colour_map)
    content = encode_png(picture, COMPRESSION)
    partial = path.with_suffix(".part")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise StorageFailedError(f"{path} could not be written: {error.strerror or error}") from error


def draw_report(
    fixed: Volume,
    moving: Volume,
    registration: Registration,
    *,
    reason: str,
    opacity: float,
    colour_map: str = COLOUR_MAP,
) -> Image:
    """Draw the report of a registration.

    Parameters
    ----------
    fixed, moving : Volume
        As they were registered, LPS mm.
    registration : Registration
        Its transform is the one that is drawn, whatever the verdict.
    reason : str
        Why the verdict is what it is, without anybody's identity.
    opacity : float
        Of the PET in the fused pictures, 0 to 1.
    colour_map : str
        Of the PET, one of `registration.fusion.COLOUR_MAPS`.

    Returns
    -------
    (rows, columns, 3) uint8, BGR

    Raises
    ------
    EmptyVolumeError
        If the fixed volume holds no head; one that was registered does.
    """
    cuts = cut_planes(fixed, moving, registration, opacity, colour_map)
    rows = [(cut.plane.name, draw_tiles(cut, registration, colour_map)) for cut in cuts]
    body = arrange(COLUMNS, rows)
    _write_legends(body, registration)
    width = body.shape[1]
    foot = _write_foot(
        width,
        [*describe_verdict(registration, reason, cuts[0].plane.centre_mm), *LEGEND],
        describe_signals(registration.metrics),
        describe_run(registration),
    )
    return np.vstack([body, _write_headline(width, registration), foot])


def _write_legends(body: Image, registration: Registration) -> None:
    """Write what the colours of contours and matches mean, under the titles of their columns, in place."""
    is_near = find_near(registration)
    contours = [(f"{share:.0%}", colour) for share, colour in CONTOURS]
    matches = [
        (f"{is_near.sum()} within {RIGHT_MATCH_MM:.0f} mm", NEAR),
        (f"{(~is_near).sum()} further", FAR),
    ]
    for column, words in ((5, [*contours, ("of bright uptake", FAINT)]), (6, matches)):
        left = place_of(0, column, SIZE_PX)[1] + 6
        for text, colour in words:
            write(body, text, (left, 45), 0.44, colour)
            left += cv2.getTextSize(text, FONT, 0.44, 1)[0][0] + 10


def _write_headline(width: int, registration: Registration) -> Image:
    """Write the verdict large, and what the report is not for."""
    colour, words = VERDICTS[registration.verdict]
    headline = np.zeros((HEADLINE_PX, width, 3), np.uint8)
    write(headline, registration.verdict.upper(), (BLOCKS[0][0], 36), 1.1, colour)
    write(headline, words, (BLOCKS[0][0] + BLOCKS[0][1] + 40, 34), 0.6, INK)
    write(headline, NOT_FOR_DIAGNOSIS, (BLOCKS[2][0], 34), 0.9, DOUBT)
    return headline


def _write_foot(width: int, *blocks: Sequence[Line]) -> Image:
    """Write blocks of lines beside one another, values and words each below one another."""
    wrapped = [_wrap(lines, columns) for lines, (_, _, columns) in zip(blocks, BLOCKS, strict=True)]
    foot = np.zeros((LINE_PX * (1 + max(len(lines) for lines in wrapped)), width, 3), np.uint8)
    for lines, (left, indent, _) in zip(wrapped, BLOCKS, strict=True):
        for number, line in enumerate(lines):
            y = LINE_PX * (1 + number)
            write(foot, line.value, (left, y), 0.5, line.colour)
            write(foot, line.words, (left + indent, y), 0.46, FAINT)
    return foot


def _wrap(lines: Sequence[Line], columns: int) -> list[Line]:
    """Break words that are too long for their block."""
    wrapped = []
    for line in lines:
        first, *rest = textwrap.wrap(line.words, columns) or [""]
        wrapped += [Line(line.value, first, line.colour), *(Line("", words) for words in rest)]
    return wrapped
