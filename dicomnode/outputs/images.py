"""What both image series share: where each image stands, how its pixels lie, what it was made of.

Flow: modules > [images] > pet|fused
Never: pixels; anything the Spatial Registration object has too.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pydicom
from pydicom.valuerep import format_number_as_ds

from dicomnode.outputs.references import (
    PIXEL_BY_PIXEL_MEAN,
    SOURCE_IMAGE,
    SPATIAL_RESAMPLING,
    make_code,
    refer_to_slice,
)
from dicomnode.outputs.request import OutputRequest
from dicomnode.outputs.sources import copy_or_empty, copy_present, read_clean
from dicomnode.volumes.series import SeriesVolume

PLANE = ("PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient")
STEP_DECIMALS = 6  # of a mm, as positions have them at most
LOSSY = ("LossyImageCompressionRatio", "LossyImageCompressionMethod")


def add_plane(image: pydicom.Dataset, fixed_header: pydicom.Dataset) -> None:
    """Put an image where its MR slice stands, in the MR's own spelling (PS3.3 C.7.6.2)."""
    copy_present(fixed_header, image, PLANE)


def add_stack(template: pydicom.Dataset, fixed: SeriesVolume) -> None:
    """Add the slice thickness (type 2) of the MR, and the step of its slices along their normal (type 3).

    The step is measured: some scanners write the gap between slices there, or a negative number.
    """
    copy_or_empty(fixed.headers[0], template, ("SliceThickness",))
    step, down, right = fixed.volume.affine[:3, :3].T
    normal = np.cross(right, down)
    step_mm = float(step @ normal / np.linalg.norm(normal))
    template.SpacingBetweenSlices = str(format_number_as_ds(round(step_mm, STEP_DECIMALS)))


def add_pixel_layout(template: pydicom.Dataset, shape: tuple[int, ...], *, samples: int) -> None:
    """Add Image Pixel without the pixels: signed 16-bit grey (1 sample) or 8-bit RGB (3 samples)."""
    bits = 16 if samples == 1 else 8
    template.SamplesPerPixel = samples
    template.PhotometricInterpretation = "MONOCHROME2" if samples == 1 else "RGB"
    if samples > 1:
        template.PlanarConfiguration = 0
    template.Rows, template.Columns = shape
    template.BitsAllocated = template.BitsStored = bits
    template.HighBit = bits - 1
    template.PixelRepresentation = 1 if samples == 1 else 0


def add_lossy_history(template: pydicom.Dataset, headers: Iterable[pydicom.Dataset]) -> None:
    """Say whether some source was once compressed with loss, which stays true for ever (PS3.3 C.7.6.1.1.5)."""
    lossy = [header for header in headers if read_clean(header, "LossyImageCompression") == "01"]
    template.LossyImageCompression = "01" if lossy else "00"
    if lossy:
        copy_present(lossy[0], template, LOSSY)


def make_derivation_codes(request: OutputRequest) -> list[pydicom.Dataset]:
    """Say in codes what was done to the PET, in this order."""
    codes = [PIXEL_BY_PIXEL_MEAN, SPATIAL_RESAMPLING] if request.moving.mean else [SPATIAL_RESAMPLING]
    return [make_code(code) for code in codes]


def make_source_references(request: OutputRequest) -> list[list[pydicom.Dataset]]:
    """Make the items for each PET slice as a source, one for each image that went into it.

    Slices share them, since thousands are slow to make.
    """
    return [
        [refer_to_slice(images, k, SOURCE_IMAGE, "NO") for images in request.moving.sources]
        for k in range(len(request.moving.headers))
    ]
