"""An instance becomes its slices: one, or each frame of a multi-frame object with the words a single-frame image has.

Flow: headers > [frames] > stacks
Never: pixels; a word made up: what neither the shared nor the frame's own functional groups say stays absent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pydicom
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    EnhancedMRImageStorage,
    EnhancedPETImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    LegacyConvertedEnhancedPETImageStorage,
)
from pydicom.valuerep import format_number_as_ds

from dicomnode.errors import SeriesRefusedError
from dicomnode.volumes.headers import PARSE_ERRORS, Instance, read_numbers, read_word

# PS3.4 B.5: the multi-frame classes that become volumes, and the Modality each implies.
MULTI_FRAME_CLASSES = {
    EnhancedMRImageStorage: "MR",
    LegacyConvertedEnhancedMRImageStorage: "MR",
    EnhancedPETImageStorage: "PT",
    LegacyConvertedEnhancedPETImageStorage: "PT",
}
# PS3.3 C.7.6.16.2, C.8.13.5, C.8.22.5: functional groups of one item, whose attributes the frame itself gets.
LIFTED_GROUPS = (
    "UnassignedSharedConvertedAttributesSequence",
    "UnassignedPerFrameConvertedAttributesSequence",
    "PixelMeasuresSequence",
    "FrameContentSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "FrameAnatomySequence",
    "PixelValueTransformationSequence",
    "FrameVOILUTSequence",
    "TemporalPositionSequence",
    "CardiacSynchronizationSequence",
    "MRImageFrameTypeSequence",
    "MRTimingAndRelatedParametersSequence",
    "MREchoSequence",
    "MRModifierSequence",
    "MRDiffusionSequence",
    "PETFrameTypeSequence",
    "PETFrameAcquisitionSequence",
)
# What a frame calls otherwise than a single-frame image does.
SINGLE_FRAME_WORDS = {
    "FrameType": "ImageType",
    "EffectiveEchoTime": "EchoTime",
    "TemporalPositionIndex": "TemporalPositionIdentifier",
    "FrameAcquisitionNumber": "AcquisitionNumber",
    "FrameAcquisitionDuration": "ActualFrameDuration",
    "NominalCardiacTriggerDelayTime": "TriggerTime",
}
# PS3.3 C.8.22.6 says YES or NO of each correction, C.8.9.1 lists those that were made.
CORRECTIONS = {
    "DecayCorrected": "DECY",
    "AttenuationCorrected": "ATTN",
    "ScatterCorrected": "SCAT",
    "DeadTimeCorrected": "DTIM",
    "GantryMotionCorrected": "MOTN",
    "PatientMotionCorrected": "PMOT",
    "RandomsCorrected": "RAN",
    "DetectorNormalizationCorrection": "NORM",
}
# UCUM codes of CID 85, 84 (PS3.16) and what C.8.9.1.1.3 calls them.
UNITS = {"Bq/ml": "BQML", "{counts}": "CNTS", "{propcounts}": "PROPCNTS", "g/ml{SUVbw}": "GML", "g/ml": "GML"}
BQ_PER_MBQ = 1e6
MOMENT = re.compile(r"(\d{8})(\d{6}(?:\.\d{1,6})?)([+-]\d{4})?")  # DT to the second, PS3.5 6.2
SPATIAL_DIMENSIONS = {"StackID", "InStackPositionNumber", "ImagePositionPatient", "ImageOrientationPatient"}
OF_MANY_FRAMES = {0x00280008, 0x52009229, 0x52009230}  # NumberOfFrames, shared and per-frame functional groups
ISOTOPES = 0x00540016  # RadiopharmaceuticalInformationSequence
MAX_FRAMES = 16384  # our rule: sixteen times the slices of the largest volume

Elements = dict[BaseTag, DataElement | RawDataElement]


@dataclass(frozen=True)
class Frame:
    """One slice: a whole single-frame instance, or one frame of a multi-frame one."""

    instance: Instance
    number: int  # within the instance, from 0
    header: pydicom.Dataset  # of this slice alone, as a single-frame image would say it
    is_of_many: bool = False  # whether the instance is a multi-frame object
    dimensions: Mapping[str, str] = field(default_factory=dict)  # keyword -> index, where the object orders its frames


def split_frames(instance: Instance) -> list[Frame]:
    """Give the slices of one instance, in the order they are stored.

    Raises
    ------
    SeriesRefusedError
        If a multi-frame object does not describe each of its frames.
    """
    header = instance.header
    if UID(read_word(header, "SOPClassUID")) not in MULTI_FRAME_CLASSES:
        return [Frame(instance, 0, header)]
    try:
        return _split_multi_frame(instance)
    except PARSE_ERRORS as error:
        raise SeriesRefusedError(
            f"{instance.path.name}: the functional groups cannot be read ({type(error).__name__})"
        ) from error


def _split_multi_frame(instance: Instance) -> list[Frame]:
    header = instance.header
    count = int(read_numbers(header, "NumberOfFrames", 1)[0])
    own_groups = header.get("PerFrameFunctionalGroupsSequence") or []
    if count != len(own_groups):
        raise SeriesRefusedError(
            f"{instance.path.name}: {count} frames and {len(own_groups)} items in PerFrameFunctionalGroupsSequence, "
            "one for each frame is needed"
        )
    if count > MAX_FRAMES:
        raise SeriesRefusedError(f"{instance.path.name}: {count} frames, at most {MAX_FRAMES} are read")
    is_pet = header.Modality == "PT"
    shared_groups = header.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()]
    base = {element.tag: element for element in header.elements() if element.tag not in OF_MANY_FRAMES}
    base |= _lift(shared_groups[0])
    if header.SOPClassUID == EnhancedPETImageStorage:  # one converted from single frames keeps their words
        base |= _read_isotopes(header)
    pointers = [keyword_for_tag(item.DimensionIndexPointer) for item in header.get("DimensionIndexSequence") or []]
    frames = []
    for number, groups in enumerate(own_groups):
        frame = pydicom.Dataset(base | _lift(groups))
        frame.file_meta = header.file_meta
        _rename(frame)
        if is_pet:
            _say_quantity(frame, (groups, shared_groups[0]))
        frames.append(Frame(instance, number, frame, True, _read_dimensions(frame, pointers)))
    return frames


def _lift(groups: pydicom.Dataset) -> Elements:
    """Collect the attributes of all functional groups that have one item; what is raw stays raw."""
    lifted: Elements = {}
    for keyword in LIFTED_GROUPS:
        for item in (groups.get(keyword) or [])[:1]:
            lifted |= {element.tag: element for element in item.elements()}
    return lifted


def _rename(frame: pydicom.Dataset) -> None:
    for word, single_frame_word in SINGLE_FRAME_WORDS.items():
        if word in frame:
            setattr(frame, single_frame_word, frame[word].value)


def _say_quantity(frame: pydicom.Dataset, places: Iterable[pydicom.Dataset]) -> None:
    """Say in a PET Image's words what the values are: corrections, and units with the slope that gives them."""
    if frame.SOPClassUID == EnhancedPETImageStorage:
        _say_decay(frame)
    if "CorrectedImage" not in frame:
        frame.CorrectedImage = [word for flag, word in CORRECTIONS.items() if read_word(frame, flag) == "YES"]
    for groups in places:
        for mapping in groups.get("RealWorldValueMappingSequence") or []:
            codes = mapping.get("MeasurementUnitsCodeSequence") or [pydicom.Dataset()]
            units = UNITS.get(read_word(codes[0], "CodeValue"))
            if units and "RealWorldValueSlope" in mapping:
                frame.Units = units
                frame.RescaleSlope = format_number_as_ds(read_numbers(mapping, "RealWorldValueSlope", 1)[0])
                frame.RescaleIntercept = format_number_as_ds(read_numbers(mapping, "RealWorldValueIntercept", 1)[0])
                return


def _read_isotopes(header: pydicom.Dataset) -> Elements:
    """Read what was injected, the dose in Bq: PS3.3 C.8.22.4 has it in MBq, C.8.9.2 in Bq."""
    items = [pydicom.Dataset(item) for item in header.get("RadiopharmaceuticalInformationSequence") or ()]
    for item in items:
        if read_word(item, "RadionuclideTotalDose"):
            dose_bq = read_numbers(item, "RadionuclideTotalDose", 1)[0] * BQ_PER_MBQ
            item.RadionuclideTotalDose = format_number_as_ds(dose_bq)
    return {BaseTag(ISOTOPES): DataElement(ISOTOPES, "SQ", items)}


def _say_decay(frame: pydicom.Dataset) -> None:
    """Say to which moment decay is corrected: DecayCorrection, and SeriesDate and SeriesTime where those tell it.

    Notes
    -----
    PS3.3 C.8.22.6 names the moment, C.8.9.1.1.5 the event, which is at SeriesTime where it is the scan's start. What
    cannot be said stays absent.
    """
    if read_word(frame, "DecayCorrected") == "NO":
        frame.DecayCorrection = "NONE"
        return
    moment = _read_moment(frame, "DecayCorrectionDateTime")
    if moment is None:
        return
    isotopes = frame.get("RadiopharmaceuticalInformationSequence") or [pydicom.Dataset()]
    if moment == _read_moment(isotopes[0], "RadiopharmaceuticalStartDateTime"):
        frame.DecayCorrection = "ADMIN"
    elif moment[2] in {"", read_word(frame, "TimezoneOffsetFromUTC")}:
        frame.DecayCorrection = "START"
        frame.SeriesDate, frame.SeriesTime = moment[0], f"{moment[1]:013.6f}"


def _read_moment(data_set: pydicom.Dataset, keyword: str) -> tuple[str, float, str] | None:
    """Read date, time of day as a number of the form HHMMSS, and offset from UTC; None where it is not that precise."""
    found = MOMENT.fullmatch(read_word(data_set, keyword))
    return (found[1], float(found[2]), found[3] or "") if found else None


def _read_dimensions(frame: pydicom.Dataset, pointers: list[str]) -> dict[str, str]:
    """Read the frame's index in each dimension that is not a place (PS3.3 C.7.6.17)."""
    indices = read_word(frame, "DimensionIndexValues").split("\\")
    named = zip(pointers, indices, strict=False)
    return {keyword: index for keyword, index in named if keyword and keyword not in SPATIAL_DIMENSIONS}
