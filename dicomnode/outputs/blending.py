"""How a viewer lays the derived PET over the MR itself: a Blending Softcopy Presentation State (PS3.3 A.33.4).

Flow: modules, pet, resampled > [blending] > objects
Never: a pixel: it refers to the MR as it was received and to the "pt" series; another window than the fused picture's.
"""

from __future__ import annotations

from typing import Final

import pydicom
from pydicom.valuerep import format_number_as_ds

from dicomnode.outputs.colour import make_srgb_profile
from dicomnode.outputs.modules import (
    date_and_time,
    describe,
    find_series_uid,
    make_instance,
    make_template,
    refer_to_output,
)
from dicomnode.outputs.pet import fit_slope
from dicomnode.outputs.quantity import find_quantity
from dicomnode.outputs.references import refer_to_series, refer_to_slice
from dicomnode.outputs.request import OutputRequest
from dicomnode.outputs.resampled import Resampled
from dicomnode.outputs.sources import read_clean
from dicomnode.volumes.headers import read_numbers, read_word
from registration.fusion import Windows, make_colours

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
    study_uid = instance.StudyInstanceUID
    instance.BlendingSequence = [
        _describe_fixed(request, resampled.windows),
        _describe_moving(study_uid, request, resampled),
    ]
    instance.RelativeOpacity = request.settings.opacity
    if request.makes_registration_object:
        instance.ReferencedSpatialRegistrationSequence = [_refer_to_registration(study_uid, request)]
    instance.DisplayedAreaSelectionSequence = [_show_all(request)]
    _add_palette(instance, request.settings.colour_map)
    instance.ICCProfile = make_srgb_profile()
    instance.ColorSpace = "SRGB"
    return instance


def _describe_fixed(request: OutputRequest, windows: Windows) -> pydicom.Dataset:
    """Say how the MR is shown; its slices are windowed apart where their stored values mean different things."""
    headers = request.fixed.headers
    low, high = windows.fixed_low, windows.fixed_high
    if read_word(headers[0], "PhotometricInterpretation") == "MONOCHROME1":  # the volume was turned round, it is not
        array = request.fixed.volume.array
        ends = float(array.max()) + float(array.min())
        low, high = ends - high, ends - low
    groups: dict[Rescale, list[int]] = {}
    for k, header in enumerate(headers):
        groups.setdefault(_read_rescale(header), []).append(k)
    item = _describe("UNDERLYING", (headers[0].StudyInstanceUID, headers[0].SeriesInstanceUID))
    item.ReferencedSeriesSequence[0].ReferencedImageSequence = refer_to_series(request.fixed)
    if len(groups) == 1:
        _show(item, next(iter(groups)), [_window(low, high)])
        return item
    shown = []
    for (slope, intercept), alike in groups.items():
        bottom, top = sorted(((low - intercept) / slope, (high - intercept) / slope))
        shown.append(_window(bottom, top))
        shown[-1].ReferencedImageSequence = [refer_to_slice(request.fixed, k) for k in alike]
    _show(item, (1.0, 0.0), shown)
    return item


def _describe_moving(study_uid: str, request: OutputRequest, resampled: Resampled) -> pydicom.Dataset:
    """Say how the derived PET is shown: as it is in itself, from nothing to the window's top."""
    quantity = find_quantity(request.moving.source_headers)
    item = _describe("SUPERIMPOSED", (study_uid, find_series_uid(request, "pt")))
    images = [refer_to_output(request, "pt", number) for number in range(1, len(request.fixed.headers) + 1)]
    item.ReferencedSeriesSequence[0].ReferencedImageSequence = images
    top = resampled.windows.moving_top * quantity.factor
    _show(item, (fit_slope(resampled.values, quantity), 0.0), [_window(0.0, top)])
    return item


def _describe(position: str, uids: tuple[str, str]) -> pydicom.Dataset:
    """Begin the item of what lies over or under, given its study and its series."""
    series, item = pydicom.Dataset(), pydicom.Dataset()
    item.BlendingPosition = position
    item.StudyInstanceUID, series.SeriesInstanceUID = uids
    item.ReferencedSeriesSequence = [series]
    return item


def _show(item: pydicom.Dataset, rescale: Rescale, windows: list[pydicom.Dataset]) -> None:
    item.RescaleSlope, item.RescaleIntercept = (str(format_number_as_ds(value)) for value in rescale)
    item.RescaleType = "US"  # PS3.3 C.11.1.1.2: unspecified
    item.SoftcopyVOILUTSequence = windows


def _window(low: float, high: float) -> pydicom.Dataset:
    item = pydicom.Dataset()
    item.WindowCenter = str(format_number_as_ds((low + high) / 2))
    item.WindowWidth = str(format_number_as_ds(high - low))
    item.VOILUTFunction = "LINEAR_EXACT"
    return item


def _refer_to_registration(study_uid: str, request: OutputRequest) -> pydicom.Dataset:
    series, study = pydicom.Dataset(), pydicom.Dataset()
    series.SeriesInstanceUID = find_series_uid(request, "reg")
    series.ReferencedSOPSequence = [refer_to_output(request, "reg", 1)]
    study.StudyInstanceUID = study_uid
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
    return slope or 1.0, intercept  # a slope of 0 is that of a blank slice: `pixels` refuses any other
