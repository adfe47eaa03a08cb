"""Items that point at the series an output was made of, and the codes that say what for.

Flow: volumes > [references] > modules, pet|fused|multiframe|registration_object|blending
Never: an item for what we make ourselves (`modules` knows those UIDs); a frame number where all frames are meant.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import pydicom

from dicomnode.volumes.headers import read_word
from dicomnode.volumes.series import SeriesVolume, SourceImages

# PS3.16 annex D; the context group of each in brackets.
Code = tuple[str, str]
ACQUISITION_EQUIPMENT: Final[Code] = ("109101", "Acquisition Equipment")  # CID 7005
PROCESSING_EQUIPMENT: Final[Code] = ("109102", "Processing Equipment")  # CID 7005
PIXEL_BY_PIXEL_MEAN: Final[Code] = ("113049", "Pixel by pixel mean")  # CID 7203
SPATIAL_RESAMPLING: Final[Code] = ("113085", "Spatial resampling")  # CID 7203
SOURCE_IMAGE: Final[Code] = ("121322", "Source image for image processing operation")  # CID 7202
ANATOMIC_IMAGE: Final[Code] = ("121338", "Anatomic image")  # CID 7201


def make_code(code: Code) -> pydicom.Dataset:
    """Make the item of a code sequence for a DCM code (PS3.3 8.8)."""
    item = pydicom.Dataset()
    item.CodeValue, item.CodeMeaning = code
    item.CodingSchemeDesignator = "DCM"
    return item


def make_reference(header: pydicom.Dataset, purpose: Code | None = None, preserved: str = "") -> pydicom.Dataset:
    """Make the item that points at one instance (PS3.3 10.3), with its purpose and SpatialLocationsPreserved."""
    item = pydicom.Dataset()
    item.ReferencedSOPClassUID = header.SOPClassUID
    item.ReferencedSOPInstanceUID = header.SOPInstanceUID
    if preserved:
        item.SpatialLocationsPreserved = preserved
    if purpose:
        item.PurposeOfReferenceCodeSequence = [make_code(purpose)]
    return item


def refer_to_slice(
    series: SeriesVolume | SourceImages, k: int, purpose: Code | None = None, preserved: str = ""
) -> pydicom.Dataset:
    """Make the item that points at one stored slice: an instance, or one frame of it."""
    item = make_reference(series.headers[k], purpose, preserved)
    if series.frame_numbers:
        item.ReferencedFrameNumber = series.frame_numbers[k]
    return item


def refer_to_series(series: SeriesVolume, purpose: Code | None = None, preserved: str = "") -> list[pydicom.Dataset]:
    """Make an item for each instance of a series; with its frames where not all of them are meant (PS3.3 10.3)."""
    items: dict[str, pydicom.Dataset] = {}
    frames: dict[str, list[int]] = {}
    for images in series.sources:
        for k, header in enumerate(images.headers):
            uid = str(header.SOPInstanceUID)
            items[uid] = items.get(uid) or make_reference(header, purpose, preserved)
            if images.frame_numbers:
                frames.setdefault(uid, []).append(images.frame_numbers[k])
    counts = {str(header.SOPInstanceUID): read_word(header, "NumberOfFrames") for header in series.source_headers}
    for uid, numbers in frames.items():
        if counts[uid] != str(len(numbers)):
            items[uid].ReferencedFrameNumber = sorted(numbers)
    return list(items.values())


def refer_to_all(series: SeriesVolume) -> list[pydicom.Dataset]:
    """Make an item for each instance of a series that lies in its frame of reference, read or set aside."""
    return [*refer_to_series(series), *map(make_reference, series.set_aside)]


def add_common_references(target: pydicom.Dataset, groups: Iterable[SeriesVolume]) -> None:
    """Say which study and series each referenced instance is in: Common Instance Reference, PS3.3 C.12.2.

    Series of the target's own study and of other studies go to different sequences; a sequence without items is left
    out.
    """
    own: list[pydicom.Dataset] = []
    other: dict[str, list[pydicom.Dataset]] = {}
    for series in groups:
        item = pydicom.Dataset()
        item.SeriesInstanceUID = series.headers[0].SeriesInstanceUID
        instances = {str(header.SOPInstanceUID): header for header in (*series.source_headers, *series.set_aside)}
        item.ReferencedInstanceSequence = [make_reference(header) for header in instances.values()]
        study_uid = str(series.headers[0].StudyInstanceUID)
        (own if study_uid == target.StudyInstanceUID else other.setdefault(study_uid, [])).append(item)
    if own:
        target.ReferencedSeriesSequence = own
    if other:
        target.StudiesContainingOtherReferencedInstancesSequence = [
            _other_study(study_uid, series) for study_uid, series in other.items()
        ]


def _other_study(study_uid: str, series: list[pydicom.Dataset]) -> pydicom.Dataset:
    item = pydicom.Dataset()
    item.StudyInstanceUID = study_uid
    item.ReferencedSeriesSequence = series
    return item
