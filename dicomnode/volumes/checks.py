"""What the headers of a series must say before anything is fitted or decoded; each refusal names what was found.

Flow: headers > [checks] > series
Never: pixels, files, geometry beyond how much of a patient a volume covers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import pydicom
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.uid import UID, MRImageStorage, PositronEmissionTomographyImageStorage

from dicomnode.errors import SeriesRefusedError
from dicomnode.volumes.frames import MULTI_FRAME_CLASSES
from dicomnode.volumes.headers import read_numbers, read_sequence_items, read_word, show_word

Headers = Sequence[pydicom.Dataset]

# PS3.4 B.5: the classes that become volumes, and the Modality each implies (PS3.3 C.8.3.1, C.8.9.1).
SINGLE_FRAME_CLASSES = {MRImageStorage: "MR", PositronEmissionTomographyImageStorage: "PT"}
READ_CLASSES = SINGLE_FRAME_CLASSES | MULTI_FRAME_CLASSES
# Private marks of several slices in one image, (group, element, creator of its block 10): Siemens'
# NumberOfImagesInMosaic, UIH's MR VFrame Sequence.
SIEMENS_MOSAIC = (0x0019, 0x100A, "SIEMENS MR HEADER")
UIH_VFRAME = (0x0065, 0x1050, "Image Private Header")
LOCALIZER_VALUES = {"LOCALIZER", "SCOUT"}  # of ImageType: PS3.3 C.7.6.1.1.2 and vendors' own
ONE_VALUE = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "PhotometricInterpretation")
SHOWN_VALUES = 4
MAX_MR_COVERAGE_MM = 500.0  # our rule: the widest field of a magnet, which attenuation maps of a head fill too
# What all slices of a PET say alike: PS3.3 C.8.9.1, C.8.22.6.
ONE_QUANTITY = ("Units", "DecayCorrection", "CountsSource")
# PS3.3 C.7.6.1.1.1: the axis and the sign of each letter of PatientOrientation, in LPS.
LETTER_AXES = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "H": (2, 1), "F": (2, -1)}
MIN_AGREEMENT = 0.5  # a direction's largest component is 0.58 at least, and its letters name that one
OWN_MANUFACTURER = "dicomnode"  # how our outputs name us among the equipment that made them


def check_headers(headers: Headers) -> None:
    """Refuse what cannot be slices of an MR or a PET.

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


def check_coverage(edges_mm: Sequence[float]) -> None:
    """Refuse an MR of more than a head, by its edges along slices, rows and columns."""
    if max(edges_mm) > MAX_MR_COVERAGE_MM:
        raise SeriesRefusedError(
            f"covers {' x '.join(f'{edge:.0f}' for edge in edges_mm)} mm (slices x rows x columns), more than a head; "
            f"at most {MAX_MR_COVERAGE_MM:.0f} mm along each are read"
        )


def check_slices(headers: Headers) -> None:
    """Refuse slices that contradict themselves, or mean different quantities.

    Parameters
    ----------
    headers : sequence of data sets, at least one
        Those of one volume: of instances, or as `frames` makes them for frames.

    Raises
    ------
    SeriesRefusedError
        If PatientOrientation is another direction than ImageOrientationPatient, as where pixels were mirrored or turned
        and one of both was forgotten; or if a PET's slices differ in what their values are, or count transmission.
    """
    for header in headers:
        _check_letters(header)
    if read_word(headers[0], "Modality") == "PT":
        _check_quantity(headers)


def _check_letters(header: pydicom.Dataset) -> None:
    letters = read_word(header, "PatientOrientation").upper().split("\\")
    if len(letters) != 2 or not all(letters) or not set("".join(letters)) <= LETTER_AXES.keys():
        return  # empty, or of an animal
    cosines = read_numbers(header, "ImageOrientationPatient", 6)
    for word, direction in zip(letters, (cosines[:3], cosines[3:]), strict=True):
        if sum(sign * direction[axis] for axis, sign in map(LETTER_AXES.__getitem__, word)) < MIN_AGREEMENT:
            named, found = show_word("\\".join(letters)), "\\".join(f"{cosine:.3g}" for cosine in cosines)
            raise SeriesRefusedError(
                f"PatientOrientation {named} contradicts ImageOrientationPatient {found}: left and right, or other "
                "sides, may be exchanged; one of both must be put right at the source"
            )


def _check_quantity(headers: Headers) -> None:
    for keyword in ONE_QUANTITY:
        values = sorted({read_word(header, keyword) for header in headers})
        if len(values) > 1:
            found = ", ".join(map(show_word, values[:SHOWN_VALUES]))
            raise SeriesRefusedError(f"{len(values)} different values of {keyword} ({found}), one is needed")
    if read_word(headers[0], "CountsSource") == "TRANSMISSION":
        raise SeriesRefusedError("CountsSource TRANSMISSION, a map of attenuation; EMISSION is needed")


def _check_class(headers: Headers) -> None:
    for header in headers:
        uid, modality = UID(read_word(header, "SOPClassUID")), read_word(header, "Modality")
        if READ_CLASSES.get(uid) != modality:
            raise SeriesRefusedError(f"modality {show_word(modality)} ({show_word(uid.name)}); MR and PET are read")
        if uid in SINGLE_FRAME_CLASSES and (count := read_word(header, "NumberOfFrames")) not in {"", "1"}:
            raise SeriesRefusedError(f"{show_word(count)} frames in one {uid.name} object; Enhanced classes are read")


def _check_foreign(headers: Headers) -> None:
    for header in headers:
        for item in read_sequence_items(header, "ContributingEquipmentSequence"):
            if read_word(item, "Manufacturer") == OWN_MANUFACTURER:
                raise SeriesRefusedError("an output of this software; results are never taken as input")


def _check_tiles(headers: Headers) -> None:
    for header in headers:
        kinds = _image_type(header)
        if "MOSAIC" in kinds or _has_mark(header, SIEMENS_MOSAIC):
            raise SeriesRefusedError("a Siemens mosaic (many slices tiled in one image); one slice an image is needed")
        if "VFRAME" in kinds or _has_mark(header, UIH_VFRAME):
            raise SeriesRefusedError("a UIH VFRAME (many slices tiled in one image); one slice an image is needed")


def _check_localizer(headers: Headers) -> None:
    if all(LOCALIZER_VALUES & _image_type(header) for header in headers):
        kind = show_word(read_word(headers[0], "ImageType"))
        raise SeriesRefusedError(f"a localizer (ImageType {kind}); a volume is needed")


def _check_one_value(headers: Headers) -> None:
    for keyword in ONE_VALUE:
        count = len({read_word(header, keyword) for header in headers})
        if count > 1:
            raise SeriesRefusedError(f"{count} different values of {keyword}, one is needed")
    sizes = Counter((read_word(header, "Rows"), read_word(header, "Columns")) for header in headers)
    if len(sizes) > 1:
        found = ", ".join(
            f"{count} of {show_word(rows)} x {show_word(columns)}"
            for (rows, columns), count in sizes.most_common(SHOWN_VALUES)
        )
        raise SeriesRefusedError(f"images of different sizes ({found} rows x columns), one size is needed")


def _check_present(headers: Headers) -> None:
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
        if not read_word(headers[0], keyword):
            raise SeriesRefusedError(f"no {keyword}, which every result must refer to")
    if not all(read_word(header, "FrameOfReferenceUID") for header in headers):
        raise SeriesRefusedError("no FrameOfReferenceUID; without one, positions mean nothing to other series")


def _has_mark(header: pydicom.Dataset, mark: tuple[int, int, str]) -> bool:
    """Say whether a private element is there, and its creator's, as far as that is said."""
    group, element, creator = mark
    if (group, element) not in header:
        return False
    block: RawDataElement | DataElement | None = header.get_item((group, 0x0010))
    if block is None:
        return True
    name = block.value.decode("ascii", "replace") if isinstance(block.value, bytes) else str(block.value)
    return name.strip() == creator


def _image_type(header: pydicom.Dataset) -> set[str]:
    return set(read_word(header, "ImageType").upper().split("\\"))


CHECKS: tuple[Callable[[Headers], None], ...] = (
    _check_class,
    _check_foreign,
    _check_tiles,
    _check_localizer,
    _check_one_value,
    _check_present,
)
