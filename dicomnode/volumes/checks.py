"""What the headers of a series must say before anything is fitted or decoded; each refusal names what was found.

Flow: headers > [checks] > series
Never: pixels, files, geometry beyond asking whether the slices lie in one direction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pydicom
from pydicom.uid import (
    UID,
    EnhancedMRColorImageStorage,
    EnhancedMRImageStorage,
    EnhancedPETImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    LegacyConvertedEnhancedPETImageStorage,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
)

from dicomnode.errors import SeriesRefusedError
from dicomnode.volumes.geometry import Numbers, count_positions, find_orientations
from dicomnode.volumes.headers import read_numbers, read_word

Headers = Sequence[pydicom.Dataset]

# PS3.4 B.5: the single-frame classes that become volumes, and the Modality each implies (PS3.3 C.8.3.1, C.8.9.1).
READ_CLASSES = {MRImageStorage: "MR", PositronEmissionTomographyImageStorage: "PT"}
MULTI_FRAME_CLASSES = {
    EnhancedMRColorImageStorage,
    EnhancedMRImageStorage,
    EnhancedPETImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    LegacyConvertedEnhancedPETImageStorage,
}
# Private marks of several slices in one image: Siemens NumberOfImagesInMosaic, UIH MR VFrame Sequence.
SIEMENS_MOSAIC = (0x0019, 0x100A)
UIH_VFRAME = (0x0065, 0x1050)
# What tells apart images of one position, most telling first; never a date.
REPEAT_REASONS = (
    "EchoTime",
    "TemporalPositionIdentifier",
    "FrameReferenceTime",
    "TriggerTime",
    "DiffusionBValue",
    "ImageType",
    "AcquisitionNumber",
    "FlipAngle",
)
ONE_VALUE = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPClassUID",
    "FrameOfReferenceUID",
    "PhotometricInterpretation",
)
SHOWN_VALUES = 4
OWN_MANUFACTURER = "dicomnode"  # how our outputs name us among the equipment that made them


def check_headers(headers: Headers) -> None:
    """Refuse what cannot be one stack of single-frame MR or PET slices.

    Parameters
    ----------
    headers : sequence of data sets, at least one
        One per distinct SOP instance, any order.

    Raises
    ------
    SeriesRefusedError
        With the first reason found, in the order of `CHECKS`.
    """
    for check in CHECKS:
        check(headers)


def read_planes(headers: Headers) -> tuple[Numbers, Numbers, Numbers]:
    """Read the plane of each slice: positions (n, 3) LPS mm, orientations (n, 6), pixel spacings (n, 2) mm.

    Raises
    ------
    SeriesRefusedError
        If a slice lacks a plane, the planes lie in several directions, or their pixels differ in size.
    """
    positions = np.array([read_numbers(header, "ImagePositionPatient", 3) for header in headers])
    orientations = np.array([read_numbers(header, "ImageOrientationPatient", 6) for header in headers])
    spacings_mm = np.array([read_numbers(header, "PixelSpacing", 2) for header in headers])
    counts = find_orientations(orientations)
    if len(counts) > 1:
        sizes = ", ".join(str(count) for count in counts[:SHOWN_VALUES])
        raise SeriesRefusedError(
            f"{len(counts)} orientations in one series ({sizes} slices), as in a localizer; one is needed"
        )
    if spacings_mm.min() <= 0 or np.ptp(spacings_mm, axis=0).max() > 1e-3 * spacings_mm.max():
        low, high = spacings_mm.min(), spacings_mm.max()
        raise SeriesRefusedError(f"PixelSpacing from {low:.4f} to {high:.4f} mm, one positive spacing is needed")
    return positions, orientations, spacings_mm


def check_repeats(headers: Headers, positions: Numbers, orientation: Numbers) -> None:
    """Refuse several images of one position, and say by which attribute they differ."""
    count = count_positions(positions, orientation)
    if count == len(headers) or count < 2:
        return
    hint = ""
    for keyword in REPEAT_REASONS:
        values = _values(headers, keyword)
        if len(values) > 1:
            hint = f"; they differ in {keyword} ({_shown(values)})"
            break
    raise SeriesRefusedError(
        f"{len(headers)} images at {count} positions, one image a position is needed (several frames or echoes){hint}"
    )


def _check_class(headers: Headers) -> None:
    for header in headers:
        uid = UID(read_word(header, "SOPClassUID"))
        if uid in MULTI_FRAME_CLASSES or (uid in READ_CLASSES and read_word(header, "NumberOfFrames") not in {"", "1"}):
            raise SeriesRefusedError(f"a multi-frame object ({uid.name}); single-frame MR and PET images are read")
        modality = read_word(header, "Modality")
        if READ_CLASSES.get(uid) != modality:
            raise SeriesRefusedError(f"modality {modality or 'absent'} ({uid.name}); MR and PET images are read")


def _check_tiles(headers: Headers) -> None:
    for header in headers:
        kinds = read_word(header, "ImageType").upper().split("\\")
        if "MOSAIC" in kinds or SIEMENS_MOSAIC in header:
            raise SeriesRefusedError("a Siemens mosaic (many slices tiled in one image); one slice an image is needed")
        if "VFRAME" in kinds or UIH_VFRAME in header:
            raise SeriesRefusedError("a UIH VFRAME (many slices tiled in one image); one slice an image is needed")


def _check_one_value(headers: Headers) -> None:
    for keyword in ONE_VALUE:
        if len(values := _values(headers, keyword)) > 1:
            raise SeriesRefusedError(f"{len(values)} different values of {keyword}, one is needed")
    sizes = Counter((read_word(header, "Rows"), read_word(header, "Columns")) for header in headers)
    if len(sizes) > 1:
        found = ", ".join(
            f"{count} of {rows} x {columns}" for (rows, columns), count in sizes.most_common(SHOWN_VALUES)
        )
        raise SeriesRefusedError(f"images of different sizes ({found} rows x columns), one size is needed")


def _check_foreign(headers: Headers) -> None:
    for header in headers:
        for item in header.get("ContributingEquipmentSequence") or ():
            if read_word(item, "Manufacturer") == OWN_MANUFACTURER:
                raise SeriesRefusedError("an output of this software; results are never taken as input")


def _check_present(headers: Headers) -> None:
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
        if not read_word(headers[0], keyword):
            raise SeriesRefusedError(f"no {keyword}, which every result must refer to")
    if not read_word(headers[0], "FrameOfReferenceUID"):
        raise SeriesRefusedError("no FrameOfReferenceUID; without one, positions mean nothing to other series")


def _values(headers: Headers, keyword: str) -> Counter[str]:
    return Counter(read_word(header, keyword) for header in headers)


def _shown(values: Counter[str]) -> str:
    shown = sorted(value or "absent" for value in values)
    return ", ".join(shown[:SHOWN_VALUES]) + (", ..." if len(shown) > SHOWN_VALUES else "")


CHECKS: tuple[Callable[[Headers], None], ...] = (
    _check_class,
    _check_foreign,
    _check_tiles,
    _check_one_value,
    _check_present,
)
