"""The Spatial Registration object: PS3.3 A.39.1.

Flow: modules > [registration_object] > objects
Never: the inverse. The matrix takes PET points to MR points, in LPS mm (PS3.3 C.20.2.1.1).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.valuerep import format_number_as_ds

from dicomnode.outputs.modules import add_frame_of_reference, date_and_time, describe, make_instance, make_template
from dicomnode.outputs.references import Code, add_common_references, make_code, refer_to_all
from dicomnode.outputs.request import OutputRequest
from dicomnode.volumes.series import SeriesVolume

# CID 7100, in PS3.16 annex B.
FRAME_OF_REFERENCE_IDENTITY: Final[Code] = ("125021", "Frame of Reference Identity")
IMAGE_CONTENT_BASED: Final[Code] = ("125024", "Image Content-based Alignment")
CONTENT_LABEL: Final = "PET_TO_MR_RIGID"  # VR CS, at most 16 characters


def make_registration_object(request: OutputRequest) -> pydicom.Dataset:
    """Make the object that says where the PET's frame of reference lies in the MR's.

    Returns
    -------
    Dataset
        Two items: the fixed MR with the literal identity, then the moving PET with `fixed_from_moving`. Readers
        differ in which they take (the last, the second, the one of a frame of reference, the product of all), and
        this order serves each of them.
    """
    template = make_template(request, "reg")
    add_frame_of_reference(template, request.fixed.headers[0])
    instance = make_instance(request, "reg", template, 1)
    instance.ContentDate, instance.ContentTime = date_and_time(request)
    instance.ContentLabel = CONTENT_LABEL
    instance.ContentDescription = describe(request)[:64]
    kind = FRAME_OF_REFERENCE_IDENTITY if request.is_identity else IMAGE_CONTENT_BASED
    instance.RegistrationSequence = [
        _registration_item(request.fixed, np.eye(4), FRAME_OF_REFERENCE_IDENTITY),
        _registration_item(request.moving, request.fixed_from_moving.matrix, kind),
    ]
    add_common_references(instance, (request.fixed, request.moving))
    return instance


def format_matrix(matrix: NDArray[np.float64]) -> list[str]:
    """Spell a (4, 4) matrix as 16 DS values of at most 16 characters, row by row (PS3.3 C.20.2.1.1)."""
    return [str(format_number_as_ds(float(value) + 0.0)) for value in matrix.ravel()]  # + 0.0: no minus zero


def _registration_item(
    series: SeriesVolume, registered_from_source: NDArray[np.float64], kind: Code
) -> pydicom.Dataset:
    matrix = pydicom.Dataset()
    matrix.FrameOfReferenceTransformationMatrixType = "RIGID"
    matrix.FrameOfReferenceTransformationMatrix = format_matrix(registered_from_source)
    registration = pydicom.Dataset()
    registration.RegistrationTypeCodeSequence = [make_code(kind)]
    registration.MatrixSequence = [matrix]
    item = pydicom.Dataset()
    item.FrameOfReferenceUID = series.headers[0].FrameOfReferenceUID
    item.ReferencedImageSequence = refer_to_all(series)
    item.MatrixRegistrationSequence = [registration]
    return item
