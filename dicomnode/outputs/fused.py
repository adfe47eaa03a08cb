"""The fused picture in colour: a Secondary Capture series (PS3.3 A.8.1) that stands where the MR stands.

Flow: modules, resampled > [fused] > multiframe, objects
Never: a measurement; text burnt into the pixels; modality MR, which readers of MR would take for input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pydicom
from numpy.typing import NDArray

from dicomnode.outputs.colour import make_srgb_profile
from dicomnode.outputs.images import (
    add_lossy_history,
    add_pixel_layout,
    add_plane,
    add_stack,
    make_derivation_codes,
    make_source_references,
)
from dicomnode.outputs.modules import add_frame_of_reference, describe, make_instance, make_template
from dicomnode.outputs.references import SOURCE_IMAGE, refer_to_slice
from dicomnode.outputs.request import Kind, OutputRequest
from dicomnode.outputs.resampled import Resampled, make_colours
from dicomnode.volumes.headers import read_numbers

# PS3.3 C.7.6.1.1.1: the letter of each axis' negative and positive end, in LPS.
AXIS_LETTERS = (("R", "L"), ("A", "P"), ("F", "H"))
MIN_COMPONENT = 1e-4  # of a direction cosine that earns a letter


def make_fused_series(request: OutputRequest, resampled: Resampled) -> Iterator[Callable[[], pydicom.Dataset]]:
    """Make the fused pictures slice by slice.

    Parameters and return are those of `pet.make_pet_series`.
    """
    template = make_fused_template(request, "rgb")
    add_stack(template, request.fixed)
    colours = make_colours(request, resampled)
    references = make_source_references(request)
    for k, fixed_header in enumerate(request.fixed.headers):
        instance = make_instance(request, "rgb", template, k + 1)
        instance.SourceImageSequence = [
            refer_to_slice(request.fixed, k, SOURCE_IMAGE, "YES"),
            *(item for n in resampled.contributing[k] for item in references[n]),
        ]
        yield partial(_fill_image, instance, fixed_header, colours[k])


def make_fused_template(request: OutputRequest, kind: Kind) -> pydicom.Dataset:
    """Make what all fused pictures share: SC Equipment, General Image, Image Pixel and ICC Profile besides the rest."""
    mr = request.fixed.headers[0]
    template = make_template(request, kind)
    add_frame_of_reference(template, mr)
    template.ConversionType = "WSD"
    template.ImageType = ["DERIVED", "SECONDARY", "FUSED"]
    template.DerivationDescription = f"{describe(request)}, painted over the MR in colour; for display only"
    template.DerivationCodeSequence = make_derivation_codes(request)
    template.PatientOrientation = find_patient_orientation(read_numbers(mr, "ImageOrientationPatient", 6))
    template.BurnedInAnnotation = "NO"
    add_lossy_history(template, (*request.fixed.headers, *request.moving.source_headers))
    add_pixel_layout(template, request.fixed.volume.shape[1:], samples=3)
    template.ICCProfile = make_srgb_profile()
    template.ColorSpace = "SRGB"
    return template


def add_colours(image: pydicom.Dataset, colours: NDArray[np.uint8]) -> None:
    """Put (..., 3) uint8 RGB into an image as its pixels, padded to an even number of bytes (PS3.5 8.1.1)."""
    pixels = np.ascontiguousarray(colours).tobytes()
    image.PixelData = pixels + b"\0" * (len(pixels) % 2)
    image["PixelData"].VR = "OB"


def find_patient_orientation(orientation: tuple[float, ...]) -> list[str]:
    """Name the directions of a row and of a column in letters (PS3.3 C.7.6.1.1.1).

    Parameters
    ----------
    orientation : six floats
        ImageOrientationPatient, LPS.

    Returns
    -------
    list of two str
        Each the largest component's letter first; (1, 0, 0, 0, 0, -1) gives ["L", "F"].
    """
    return [_letters(orientation[:3]), _letters(orientation[3:])]


def _letters(direction: tuple[float, ...]) -> str:
    axes = sorted(range(3), key=lambda axis: (-abs(direction[axis]), axis))
    return "".join(AXIS_LETTERS[axis][direction[axis] > 0] for axis in axes if abs(direction[axis]) >= MIN_COMPONENT)


def _fill_image(
    instance: pydicom.Dataset,
    fixed_header: pydicom.Dataset,
    colours: NDArray[np.uint8],
) -> pydicom.Dataset:
    add_plane(instance, fixed_header)
    add_colours(instance, colours)
    return instance
