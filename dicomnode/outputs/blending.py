"""How a viewer lays the derived PET over the MR itself: a Blending Softcopy Presentation State (PS3.3 A.33.4).

Flow: modules, pet, resampled > [blending] > objects
Never: a pixel: it refers to the MR as it was received and to the "pt" series; another window than the fused picture's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import pydicom
from pydicom.valuerep import format_number_as_ds

from dicomnode.outputs.colour import make_srgb_profile
from dicomnode.outputs.modules import (
    PLANS,
    date_and_time,
    describe,
    find_instance_uid,
    find_series_uid,
    make_instance,
    make_reference,
    make_template,
)
from dicomnode.outputs.pet import fit_slope
from dicomnode.outputs.quantity import find_quantity
from dicomnode.outputs.request import OutputRequest
from dicomnode.outputs.resampled import Resampled
from dicomnode.outputs.sources import read_clean
from dicomnode.volumes.headers import read_numbers, read_word
from registration.fusion import make_colours

CONTENT_LABEL: Final = "PET_ON_MR"  # VR CS, at most 16 characters
PALETTE_BITS = 16
Rescale = tuple[float, float]  # slope and intercept


def make_blending(request: OutputRequest, resampled: Resampled) -> pydicom.Dataset:
    """Make the presentation state: the MR in grey underneath, the derived PET in colour on top.

    Returns
    -------
    Dataset
        With the windows, the opacity and the colours of the fused series; it refers to the "reg" where one is made.
    """
    instance = make_instance(request, "blending", make_template(request, "blending"), 1)
    instance.ContentLabel = CONTENT_LABEL
    instance.ContentDescription = describe(request)[:64]
    instance.PresentationCreationDate, instance.PresentationCreationTime = date_and_time(request)
    instance.ContentCreatorName = None
    instance.BlendingSequence = [_describe_fixed(request, resampled), _describe_moving(instance, request, resampled)]
    instance.RelativeOpacity = request.settings.opacity
    if request.makes_registration_object:
        instance.ReferencedSpatialRegistrationSequence = [_refer_to_registration(instance, request)]
    instance.DisplayedAreaSelectionSequence = [_show_all(request)]
    _add_palette(instance, request.settings.colour_map)
    instance.ICCProfile = make_srgb_profile()
    instance.ColorSpace = "SRGB"
    return instance


def _describe_fixed(request: OutputRequest, resampled: Resampled) -> pydicom.Dataset:
    """Say how the MR is shown; its slices are windowed apart where their stored values mean different things."""
    headers, windows = request.fixed.headers, resampled.windows
    low, high = windows.fixed_low, windows.fixed_high
    if read_word(headers[0], "PhotometricInterpretation") == "MONOCHROME1":  # the volume was turned round, it is not
        array = request.fixed.volume.array
        ends = float(array.max()) + float(array.min())
        low, high = ends - high, ends - low
    groups: dict[Rescale, list[pydicom.Dataset]] = {}
    for header in headers:
        groups.setdefault(_read_rescale(header), []).append(header)
    if len(groups) == 1:
        (rescale,) = groups
        return _blend("UNDERLYING", headers, rescale, [_window(low, high)])
    shown = [
        _window((low - intercept) / slope, (high - intercept) / slope, alike)
        for (slope, intercept), alike in groups.items()
    ]
    return _blend("UNDERLYING", headers, (1.0, 0.0), shown)


def _describe_moving(instance: pydicom.Dataset, request: OutputRequest, resampled: Resampled) -> pydicom.Dataset:
    """Say how the derived PET is shown: as it is in itself, from nothing to the window's top."""
    quantity = find_quantity(request.moving.headers)
    images = []
    for number in range(1, len(request.fixed.headers) + 1):
        image = pydicom.Dataset()
        image.StudyInstanceUID, image.SeriesInstanceUID = instance.StudyInstanceUID, find_series_uid(request, "pt")
        image.SOPClassUID, image.SOPInstanceUID = PLANS["pt"].sop_class_uid, find_instance_uid(request, "pt", number)
        images.append(image)
    window = _window(0.0, resampled.windows.moving_top * quantity.factor)
    return _blend("SUPERIMPOSED", images, (fit_slope(resampled.values, quantity), 0.0), [window])


def _blend(
    position: str, headers: Sequence[pydicom.Dataset], rescale: Rescale, windows: list[pydicom.Dataset]
) -> pydicom.Dataset:
    series, item = pydicom.Dataset(), pydicom.Dataset()
    series.SeriesInstanceUID = headers[0].SeriesInstanceUID
    series.ReferencedImageSequence = [make_reference(header) for header in headers]
    item.BlendingPosition = position
    item.StudyInstanceUID = headers[0].StudyInstanceUID
    item.ReferencedSeriesSequence = [series]
    item.RescaleSlope, item.RescaleIntercept = (str(format_number_as_ds(value)) for value in rescale)
    item.RescaleType = "US"  # PS3.3 C.11.1.1.2: unspecified
    item.SoftcopyVOILUTSequence = windows
    return item


def _window(low: float, high: float, headers: Iterable[pydicom.Dataset] = ()) -> pydicom.Dataset:
    """Show values from `low` to `high`, of these images alone where some are given."""
    item = pydicom.Dataset()
    if images := [make_reference(header) for header in headers]:
        item.ReferencedImageSequence = images
    item.WindowCenter = str(format_number_as_ds((low + high) / 2))
    item.WindowWidth = str(format_number_as_ds(abs(high - low)))
    item.VOILUTFunction = "LINEAR_EXACT"
    return item


def _refer_to_registration(instance: pydicom.Dataset, request: OutputRequest) -> pydicom.Dataset:
    reference, series, study = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    reference.ReferencedSOPClassUID = PLANS["reg"].sop_class_uid
    reference.ReferencedSOPInstanceUID = find_instance_uid(request, "reg", 1)
    series.SeriesInstanceUID = find_series_uid(request, "reg")
    series.ReferencedSOPSequence = [reference]
    study.StudyInstanceUID = instance.StudyInstanceUID
    study.ReferencedSeriesSequence = [series]
    return study


def _show_all(request: OutputRequest) -> pydicom.Dataset:
    """Show whole images of whatever size the screen has."""
    _, rows, columns = request.fixed.volume.shape
    item = pydicom.Dataset()
    item.DisplayedAreaTopLeftHandCorner = [1, 1]
    item.DisplayedAreaBottomRightHandCorner = [columns, rows]
    item.PresentationSizeMode = "SCALE TO FIT"
    item.PresentationPixelSpacing = read_clean(request.fixed.headers[0], "PixelSpacing")
    return item


def _add_palette(instance: pydicom.Dataset, colour_map: str) -> None:
    """Add the colours of the PET as three tables of 256 values of 16 bits (PS3.3 C.7.9)."""
    colours = make_colours(colour_map).astype("<u2") * 257  # 255 becomes 65535
    for number, name in enumerate(("Red", "Green", "Blue")):
        setattr(instance, f"{name}PaletteColorLookupTableDescriptor", [len(colours), 0, PALETTE_BITS])
        setattr(instance, f"{name}PaletteColorLookupTableData", colours[:, number].astype("<u2").tobytes())


def _read_rescale(header: pydicom.Dataset) -> Rescale:
    slope, intercept = (
        read_numbers(header, keyword, 1)[0] if read_word(header, keyword) else default
        for keyword, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
    )
    return slope, intercept
