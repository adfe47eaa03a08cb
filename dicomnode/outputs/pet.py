"""The PET on the MR's grid, quantitative: a series of PET images (PS3.3 A.21), one per MR slice.

Flow: modules, quantity, resampled > [pet] > objects
Never: the processing time as a PET time (an SUV would follow it); a slope that changes within the series.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.valuerep import format_number_as_ds

from dicomnode.outputs.contributions import middle_slice
from dicomnode.outputs.images import (
    add_lossy_history,
    add_pixel_layout,
    add_plane,
    add_stack,
    make_derivation_codes,
    make_source_references,
)
from dicomnode.outputs.modules import PATIENT_STUDY, add_frame_of_reference, describe, make_instance, make_template
from dicomnode.outputs.quantity import Quantity, find_quantity
from dicomnode.outputs.references import ANATOMIC_IMAGE, refer_to_slice
from dicomnode.outputs.request import OutputRequest
from dicomnode.outputs.resampled import Resampled
from dicomnode.outputs.sources import copy_or_empty, copy_present, read_clean, read_text

MAX_STORED = 32767  # signed 16 bits, negatives unused
MIN_LINEAR_WIDTH = 1.0  # PS3.3 C.11.2.1.2.1: a narrower window needs LINEAR_EXACT
NOT_QUANTITATIVE = "Not for quantification: the source PET lacks "

# From the PET: PET series C.8.9.1; PET isotope C.8.9.2; orientation C.8.4.6; image C.8.9.4.
SERIES_TYPE_2 = ("CorrectedImage", "CollimatorType")
SERIES_TYPE_3 = (
    "SUVType",
    "RandomsCorrectionMethod",
    "ScatterCorrectionMethod",
    "AttenuationCorrectionMethod",
    "ReconstructionMethod",
    "ConvolutionKernel",
    "EnergyWindowRangeSequence",
)
SEQUENCES_TYPE_2 = (
    "RadiopharmaceuticalInformationSequence",
    "PatientOrientationCodeSequence",
    "PatientGantryRelationshipCodeSequence",
)
IMAGE_TYPE_2 = ("AcquisitionDate", "AcquisitionTime", "ActualFrameDuration", "DoseCalibrationFactor")


def fit_slope(values: NDArray[np.float32], quantity: Quantity) -> float:
    """Choose the RescaleSlope that gives the largest value 32767, as its DS spelling will be read back."""
    largest = float(values.max()) * quantity.factor
    return float(format_number_as_ds(largest / MAX_STORED)) if largest > 0 else 1.0


def quantise(values: NDArray[np.float32], slope: float) -> NDArray[np.int16]:
    """Turn values into stored integers, negatives clamped to 0; off by at most half a slope."""
    stored: NDArray[np.int16] = np.clip(np.rint(values / np.float64(slope)), 0, MAX_STORED).astype(np.int16)
    return stored


def make_pet_series(request: OutputRequest, resampled: Resampled) -> Iterator[Callable[[], pydicom.Dataset]]:
    """Make the derived PET slice by slice.

    Parameters
    ----------
    request : OutputRequest
    resampled : Resampled
        The PET on the MR's grid.

    Returns
    -------
    iterator of callables
        Each makes one image, in the order of k.
    """
    quantity = find_quantity(request.moving.source_headers)
    slope = fit_slope(resampled.values, quantity)
    middle = middle_slice(resampled.contributing, len(request.moving.headers))
    template = make_template(request, "pt")
    add_frame_of_reference(template, request.fixed.headers[0])
    _add_series_modules(template, request, quantity)
    _add_constant_image_modules(template, request, quantity)
    template.RescaleSlope = str(format_number_as_ds(slope))
    _add_window(template, resampled.windows.moving_top * quantity.factor)
    _add_times(template, request.moving.headers[middle])
    references = make_source_references(request)
    for k, fixed_header in enumerate(request.fixed.headers):
        instance = make_instance(request, "pt", template, k + 1)
        sources = [item for n in resampled.contributing[k] for item in references[n]]
        instance.ReferencedImageSequence = [refer_to_slice(request.fixed, k, ANATOMIC_IMAGE)]
        yield partial(_fill_image, instance, fixed_header, sources, resampled.values[k], slope / quantity.factor)


def _add_series_modules(template: pydicom.Dataset, request: OutputRequest, quantity: Quantity) -> None:
    """Add what all slices take from the PET: patient study, PET series, isotope and orientation."""
    pet = request.moving.headers[0]
    for keyword in PATIENT_STUDY:
        template.pop(keyword, None)  # an SUV goes by the PET's own, or by none
    copy_present(pet, template, (*PATIENT_STUDY, *SERIES_TYPE_3))
    copy_or_empty(pet, template, (*SERIES_TYPE_2, *SEQUENCES_TYPE_2))
    for item in template.RadiopharmaceuticalInformationSequence:
        if "RadionuclideCodeSequence" not in item:
            item.RadionuclideCodeSequence = []
    quantity.add_private(request.moving.source_headers, template)
    _add_offset(pet, template, request)
    template.SeriesType = ["STATIC", "IMAGE"]
    template.NumberOfSlices = len(request.fixed.headers)
    missing = [keyword for keyword in ("Units", "CountsSource", "DecayCorrection") if not read_clean(pet, keyword)]
    copy_present(pet, template, ("Units", "CountsSource", "DecayCorrection"))
    corrections = template.CorrectedImage or []
    defaults = {
        "Units": "NONE",
        "CountsSource": "EMISSION",
        "DecayCorrection": "START" if "DECY" in corrections else "NONE",
    }
    for keyword in missing:
        setattr(template, keyword, defaults[keyword])
    if quantity.units:
        template.Units = quantity.units
    missing += _copy_series_time(pet, template, request)
    missing += [keyword for keyword in ("FrameReferenceTime",) if not read_clean(pet, keyword)]
    if template.DecayCorrection != "NONE" and not read_clean(pet, "DecayFactor"):
        missing.append("DecayFactor")
    if missing:
        template.ImageComments = NOT_QUANTITATIVE + ", ".join(missing)


def _add_offset(pet: pydicom.Dataset, template: pydicom.Dataset, request: OutputRequest) -> None:
    """Say in which offset from UTC the PET's times are, and the moment of making too (PS3.3 C.12.1).

    An injection may be given with an offset of its own; without the PET's, an SUV would be wrong by the hours between.
    """
    offset = read_text(pet, "TimezoneOffsetFromUTC")
    try:
        created = request.created.astimezone(datetime.strptime(offset, "%z").tzinfo)
    except ValueError:  # absent, or none
        return
    template.TimezoneOffsetFromUTC = f"{created:%z}"
    template.InstanceCreationDate, template.InstanceCreationTime = f"{created:%Y%m%d}", f"{created:%H%M%S}"


def _copy_series_time(pet: pydicom.Dataset, template: pydicom.Dataset, request: OutputRequest) -> list[str]:
    """Copy the PET's time reference, or the nearest thing to it; return what was missing."""
    for stage in ("Series", "Acquisition", "Study"):
        date, time = read_clean(pet, f"{stage}Date"), read_clean(pet, f"{stage}Time")
        if date and time:
            template.SeriesDate, template.SeriesTime = date, time
            return [] if stage == "Series" else ["SeriesDate and SeriesTime"]
    template.SeriesDate, template.SeriesTime = request.created.strftime("%Y%m%d"), request.created.strftime("%H%M%S")
    return ["any date and time"]


def _add_constant_image_modules(template: pydicom.Dataset, request: OutputRequest, quantity: Quantity) -> None:
    """Add General Image, Image Pixel and PET Image as far as all slices agree."""
    template.ImageType = ["DERIVED", "PRIMARY", "RESAMPLED"]
    template.DerivationDescription = (
        f"{describe(request)}, resampled on the MR grid by cubic B-splines{quantity.derivation}"
    )
    template.DerivationCodeSequence = make_derivation_codes(request)
    add_lossy_history(template, request.moving.source_headers)
    add_stack(template, request.fixed)
    add_pixel_layout(template, request.fixed.volume.shape[1:], samples=1)
    template.RescaleIntercept = "0"


def _add_window(template: pydicom.Dataset, top: float) -> None:
    """Show the PET from 0 to `top`, in its unit (PS3.3 C.11.2)."""
    template.WindowCenter = str(format_number_as_ds(top / 2))
    template.WindowWidth = str(format_number_as_ds(top))
    if top < MIN_LINEAR_WIDTH:
        template.VOILUTFunction = "LINEAR_EXACT"


def _add_times(template: pydicom.Dataset, middle: pydicom.Dataset) -> None:
    """Add the times and factors of PET Image, one set for the series.

    An output slice is made of many PET slices; dcm2niix takes different frame times for different volumes.
    """
    copy_or_empty(middle, template, IMAGE_TYPE_2)
    template.FrameReferenceTime = read_clean(middle, "FrameReferenceTime") or "0"
    if template.DecayCorrection != "NONE":
        template.DecayFactor = read_clean(middle, "DecayFactor") or "1"


def _fill_image(
    instance: pydicom.Dataset,
    fixed_header: pydicom.Dataset,
    sources: list[pydicom.Dataset],
    values: NDArray[np.float32],
    slope: float,
) -> pydicom.Dataset:
    """Add what belongs to one slice: plane, references and pixels."""
    add_plane(instance, fixed_header)
    if sources:
        instance.SourceImageSequence = sources
    instance.ImageIndex = int(instance.InstanceNumber)
    instance.PixelData = quantise(values, slope).astype("<i2").tobytes()
    instance["PixelData"].VR = "OW"
    return instance
