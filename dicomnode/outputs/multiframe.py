"""The fused picture as one instance: a Multi-frame True Color Secondary Capture (PS3.3 A.8.5), a frame a MR slice.

Flow: fused, resampled > [multiframe] > objects
Never: another picture than the single-frame series shows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pydicom
from pydicom.tag import Tag
from pydicom.valuerep import format_number_as_ds

from dicomnode.outputs.fused import add_colours, make_fused_template
from dicomnode.outputs.images import add_plane, add_stack
from dicomnode.outputs.modules import date_and_time, make_instance
from dicomnode.outputs.references import SOURCE_IMAGE, refer_to_series
from dicomnode.outputs.request import OutputRequest
from dicomnode.outputs.resampled import Resampled, make_colours
from dicomnode.outputs.sources import copy_present
from dicomnode.volumes.headers import read_numbers
from dicomnode.volumes.series import SeriesVolume


def make_multiframe(request: OutputRequest, resampled: Resampled) -> pydicom.Dataset:
    """Make the fused picture with all slices as frames, in the order of k, each with its plane in the MR's spelling."""
    headers = request.fixed.headers
    instance = make_instance(request, "multiframe", make_fused_template(request, "multiframe"), 1)
    instance.ContentDate, instance.ContentTime = date_and_time(request)
    instance.NumberOfFrames = len(headers)
    instance.FrameIncrementPointer = Tag("SliceLocationVector")
    instance.SliceLocationVector = _locate(headers)
    copy_present(headers[0], instance, ("PixelSpacing",))
    instance.SourceImageSequence = refer_to_series(request.fixed, SOURCE_IMAGE, "YES")
    instance.SharedFunctionalGroupsSequence = [_describe_shared(request.fixed)]
    instance.PerFrameFunctionalGroupsSequence = [_describe_frame(header) for header in headers]
    add_colours(instance, make_colours(request, resampled))
    return instance


def _locate(headers: Sequence[pydicom.Dataset]) -> list[str]:
    """Return how far along their normal the slices lie, mm (PS3.3 C.8.6.4)."""
    orientation = np.array(read_numbers(headers[0], "ImageOrientationPatient", 6))
    normal = np.cross(orientation[:3], orientation[3:])
    places_mm = (float(normal @ read_numbers(header, "ImagePositionPatient", 3)) for header in headers)
    return [str(format_number_as_ds(place_mm)) for place_mm in places_mm]


def _describe_shared(fixed: SeriesVolume) -> pydicom.Dataset:
    """Make the groups that all frames share: Pixel Measures and Plane Orientation (PS3.3 C.7.6.16.2.1 and 4)."""
    plane, measures, orientation, shared = (pydicom.Dataset() for _ in range(4))
    add_plane(plane, fixed.headers[0])
    add_stack(measures, fixed)
    measures.PixelSpacing = plane.PixelSpacing
    orientation.ImageOrientationPatient = plane.ImageOrientationPatient
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [orientation]
    return shared


def _describe_frame(header: pydicom.Dataset) -> pydicom.Dataset:
    """Make the group of one frame: Plane Position (PS3.3 C.7.6.16.2.3)."""
    position, frame = pydicom.Dataset(), pydicom.Dataset()
    copy_present(header, position, ("ImagePositionPatient",))
    frame.PlanePositionSequence = [position]
    return frame
