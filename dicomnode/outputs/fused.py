"""The fused picture in colour: a Secondary Capture series (PS3.3 A.8.1) that stands where the MR stands.

Flow: modules > [fused] > objects
Never: a measurement; text burnt into the pixels; modality MR, which readers of MR would take for input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.uid import SecondaryCaptureImageStorage

from dicomnode.outputs.colour import make_srgb_profile
from dicomnode.outputs.images import (
    add_lossy_history,
    add_pixel_layout,
    add_plane,
    add_stack,
    make_source_references,
)
from dicomnode.outputs.modules import (
    SOURCE_IMAGE,
    SPATIAL_RESAMPLING,
    SeriesPlan,
    describe,
    make_code,
    make_instance,
    make_reference,
    make_template,
    series_name,
)
from dicomnode.outputs.request import OutputRequest
from dicomnode.volumes.headers import read_numbers
from registration.fusion import fuse

# PS3.3 C.7.6.1.1.1: the letter of each axis' negative and positive end, in LPS.
AXIS_LETTERS = (("R", "L"), ("A", "P"), ("F", "H"))
MIN_COMPONENT = 1e-4  # of a direction cosine that earns a letter


def make_fused_series(
    request: OutputRequest, moving_on_fixed: NDArray[np.float32], contributing: list[range]
) -> Iterator[Callable[[], pydicom.Dataset]]:
    """Make the fused pictures slice by slice.

    Parameters and return are those of `pet.make_pet_series`.
    """
    mr, pet = request.fixed.headers[0], request.moving.headers[0]
    description = f"PET {series_name(pet, 'series')} fused on {series_name(mr, 'MR')}"
    plan = SeriesPlan("rgb", "OT", SecondaryCaptureImageStorage, 1, description)
    template = make_template(request, plan)
    _add_constant_modules(template, request)
    colours = fuse(request.fixed.volume.array, moving_on_fixed, opacity=request.settings.opacity)
    references = make_source_references(request)
    for k, fixed_header in enumerate(request.fixed.headers):
        instance = make_instance(request, plan, template, k + 1)
        sources = [references[n] for n in contributing[k]]
        yield partial(_fill_image, instance, fixed_header, sources, colours[k])


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


def _add_constant_modules(template: pydicom.Dataset, request: OutputRequest) -> None:
    """Add SC Equipment, General Image, Image Pixel and ICC Profile as far as all slices agree."""
    mr = request.fixed.headers[0]
    template.ConversionType = "WSD"
    template.ImageType = ["DERIVED", "SECONDARY", "FUSED"]
    template.DerivationDescription = f"For display only. {describe(request)}, painted over the MR in colour"
    template.DerivationCodeSequence = [make_code(SPATIAL_RESAMPLING)]
    template.PatientOrientation = find_patient_orientation(read_numbers(mr, "ImageOrientationPatient", 6))
    template.BurnedInAnnotation = "NO"
    add_lossy_history(template, (*request.fixed.headers, *request.moving.headers))
    add_stack(template, mr)
    add_pixel_layout(template, request.fixed.volume.shape[1:], samples=3)
    template.ICCProfile = make_srgb_profile()
    template.ColorSpace = "SRGB"


def _fill_image(
    instance: pydicom.Dataset,
    fixed_header: pydicom.Dataset,
    sources: list[pydicom.Dataset],
    colours: NDArray[np.uint8],
) -> pydicom.Dataset:
    add_plane(instance, fixed_header)
    instance.SourceImageSequence = [make_reference(fixed_header, SOURCE_IMAGE, "YES"), *sources]
    pixels = np.ascontiguousarray(colours).tobytes()
    instance.PixelData = pixels + b"\0" * (len(pixels) % 2)
    instance["PixelData"].VR = "OB"
    return instance
