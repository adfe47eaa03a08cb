"""Multi-frame MR and PET objects, made of the slices that `series_files` makes.

Flow: series_files > [enhanced_files] > tests
Never: code of `volumes/`, which it is there to test; a group that the standard does not have.
"""

from __future__ import annotations

from collections.abc import Sequence

import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.uid import (
    EnhancedMRImageStorage,
    EnhancedPETImageStorage,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
)

from tests.dicomnode.series_files import SeriesSpec, make_series

ENHANCED = {
    MRImageStorage: EnhancedMRImageStorage,
    PositronEmissionTomographyImageStorage: EnhancedPETImageStorage,
}
# PS3.3 C.7.6.16.2, C.8.13.5, C.8.22.5: functional group -> {its word: the single-frame word}.
GROUPS = {
    "PixelMeasuresSequence": {"PixelSpacing": "PixelSpacing", "SliceThickness": "SliceThickness"},
    "PlanePositionSequence": {"ImagePositionPatient": "ImagePositionPatient"},
    "PlaneOrientationSequence": {"ImageOrientationPatient": "ImageOrientationPatient"},
    "PixelValueTransformationSequence": {"RescaleSlope": "RescaleSlope", "RescaleIntercept": "RescaleIntercept"},
    "FrameContentSequence": {
        "StackID": "StackID",
        "InStackPositionNumber": "InStackPositionNumber",
        "TemporalPositionIndex": "TemporalPositionIdentifier",
        "DimensionIndexValues": "DimensionIndexValues",
    },
    "MREchoSequence": {"EffectiveEchoTime": "EchoTime"},
    "MRImageFrameTypeSequence": {"FrameType": "ImageType", "ComplexImageComponent": "ComplexImageComponent"},
    "PETFrameTypeSequence": {"FrameType": "ImageType"},
    "RealWorldValueMappingSequence": {
        "RealWorldValueSlope": "RealWorldValueSlope",
        "RealWorldValueIntercept": "RealWorldValueIntercept",
        "MeasurementUnitsCodeSequence": "MeasurementUnitsCodeSequence",
    },
}
OF_ONE_MODALITY = {"MREchoSequence": "MR", "MRImageFrameTypeSequence": "MR", "PETFrameTypeSequence": "PT"}
KEPT = {"ImageType"}  # stands at the top level too


def make_enhanced(slices: Sequence[pydicom.Dataset], dimensions: Sequence[str] = ()) -> pydicom.Dataset:
    """Make one multi-frame object of single-frame slices, a frame each, in their order.

    What all slices agree in goes to the shared functional groups, the rest to the frames' own. `dimensions` are the
    attributes that the slices' DimensionIndexValues count.
    """
    first = slices[0]
    words = {word for group in GROUPS.values() for word in group.values()}
    data_set = pydicom.Dataset({element.tag: element for element in first if element.keyword not in words - KEPT})
    data_set.SOPClassUID = ENHANCED[first.SOPClassUID]
    data_set.NumberOfFrames = len(slices)
    data_set.InstanceNumber = 1
    own = [_make_groups(header) for header in slices]
    shared = pydicom.Dataset()
    for keyword in list(own[0].dir()):
        if all(keyword in item and item[keyword] == own[0][keyword] for item in own):
            shared[keyword] = own[0][keyword]
            for item in own:
                del item[keyword]
    data_set.SharedFunctionalGroupsSequence = [shared]
    data_set.PerFrameFunctionalGroupsSequence = own
    data_set.DimensionIndexSequence = [_make_pointer(keyword) for keyword in dimensions]
    data_set.PixelData = b"".join(header.PixelData for header in slices)
    data_set["PixelData"].VR = "OW"
    data_set.file_meta = first.file_meta
    data_set.file_meta.MediaStorageSOPClassUID = data_set.SOPClassUID
    return data_set


def make_enhanced_series(spec: SeriesSpec) -> pydicom.Dataset:
    """Make one multi-frame object of a series, its frames against the order of k."""
    return make_enhanced(make_series(spec)[::-1])


def _make_groups(header: pydicom.Dataset) -> pydicom.Dataset:
    groups = pydicom.Dataset()
    for group, names in GROUPS.items():
        item = pydicom.Dataset()
        for keyword, word in names.items():
            if word in header:
                setattr(item, keyword, header[word].value)
        if len(item) and OF_ONE_MODALITY.get(group, header.Modality) == header.Modality:
            setattr(groups, group, [item])
    return groups


def _make_pointer(keyword: str) -> pydicom.Dataset:
    item = pydicom.Dataset()
    item.DimensionIndexPointer = tag_for_keyword(keyword)
    return item
