"""The presentation state lays the derived PET over the MR as the fused series shows them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from dicomnode.outputs.objects import OutputRequest, make_outputs
from dicomnode.outputs.resampled import resample_moving
from registration.fusion import make_colours
from tests.dicomnode.outputs.known_requests import EVERY_OBJECT, MR, PET, make_request
from tests.dicomnode.series_files import stored_values


def make_all(request: OutputRequest) -> dict[str, list[pydicom.Dataset]]:
    made: dict[str, list[pydicom.Dataset]] = {}
    for kind, instance in make_outputs(request):
        made.setdefault(kind, []).append(instance)
    return made


def windowed(item: pydicom.Dataset, stored: NDArray[np.int16], uid: str) -> NDArray[np.float64]:
    """Apply modality LUT and window to stored values as PS3.3 C.11.1 and C.11.2.1.3.2 say: 0 is black, 1 white."""
    values = stored * float(item.RescaleSlope) + float(item.RescaleIntercept)
    (window,) = [
        one
        for one in item.SoftcopyVOILUTSequence
        if "ReferencedImageSequence" not in one
        or uid in {image.ReferencedSOPInstanceUID for image in one.ReferencedImageSequence}
    ]
    assert window.VOILUTFunction == "LINEAR_EXACT"
    shown = (values - float(window.WindowCenter)) / float(window.WindowWidth) + 0.5
    return np.asarray(np.clip(shown, 0, 1), np.float64)


@pytest.fixture(scope="module")
def made() -> dict[str, list[pydicom.Dataset]]:
    return make_all(make_request(settings=EVERY_OBJECT))


def test_the_mr_lies_under_the_derived_pet(made: dict[str, list[pydicom.Dataset]]) -> None:
    under, over = made["blending"][0].BlendingSequence
    assert (under.BlendingPosition, over.BlendingPosition) == ("UNDERLYING", "SUPERIMPOSED")
    assert (under.StudyInstanceUID, under.ReferencedSeriesSequence[0].SeriesInstanceUID) == (
        f"{MR.uid}.1",
        f"{MR.uid}.2",
    )
    pt = made["pt"]
    assert over.StudyInstanceUID == pt[0].StudyInstanceUID
    assert over.ReferencedSeriesSequence[0].SeriesInstanceUID == pt[0].SeriesInstanceUID
    images = over.ReferencedSeriesSequence[0].ReferencedImageSequence
    assert [(i.ReferencedSOPClassUID, i.ReferencedSOPInstanceUID) for i in images] == [
        (image.SOPClassUID, image.SOPInstanceUID) for image in pt
    ]
    (study,) = made["blending"][0].ReferencedSpatialRegistrationSequence
    (series,) = study.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == made["reg"][0].SeriesInstanceUID
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == made["reg"][0].SOPInstanceUID


def test_opacity_colours_and_area_are_those_of_the_fused_series(made: dict[str, list[pydicom.Dataset]]) -> None:
    (state,) = made["blending"]
    assert state.RelativeOpacity == 0.5
    colours = make_colours("inferno")
    for number, name in enumerate(("Red", "Green", "Blue")):
        assert list(state[f"{name}PaletteColorLookupTableDescriptor"].value) == [256, 0, 16]
        table = np.frombuffer(state[f"{name}PaletteColorLookupTableData"].value, "<u2")
        np.testing.assert_array_equal(table, colours[:, number].astype(int) * 257)
    (area,) = state.DisplayedAreaSelectionSequence
    assert (list(area.DisplayedAreaTopLeftHandCorner), list(area.DisplayedAreaBottomRightHandCorner)) == (
        [1, 1],
        [30, 32],
    )
    assert (area.PresentationSizeMode, list(area.PresentationPixelSpacing)) == ("SCALE TO FIT", [3.0, 3.5])
    assert state.ColorSpace == made["rgb"][0].ColorSpace == "SRGB"


def test_the_pet_is_shown_by_its_own_slope_and_window(made: dict[str, list[pydicom.Dataset]]) -> None:
    _, over = made["blending"][0].BlendingSequence
    image = made["pt"][5]
    assert (over.RescaleSlope, over.RescaleIntercept, over.RescaleType) == (image.RescaleSlope, 0, "US")
    (window,) = over.SoftcopyVOILUTSequence
    assert (window.WindowCenter, window.WindowWidth) == (image.WindowCenter, image.WindowWidth)


def one_slope(header: pydicom.Dataset, _k: int) -> None:
    header.RescaleSlope, header.RescaleIntercept = "2.5", "-7"


def slopes_by_slice(header: pydicom.Dataset, k: int) -> None:
    header.RescaleSlope, header.RescaleIntercept = f"{1 + k % 3}", f"{10 * (k % 3)}"


def inverted(header: pydicom.Dataset, _k: int) -> None:
    header.PhotometricInterpretation = "MONOCHROME1"


@pytest.mark.parametrize(
    ("change", "windows"),
    [(lambda _header, _k: None, 1), (one_slope, 1), (slopes_by_slice, 3), (inverted, 1)],
    ids=["plain", "one slope", "slopes by slice", "monochrome1"],
)
def test_the_mr_is_as_bright_as_in_the_fused_series(
    change: Callable[[pydicom.Dataset, int], None], windows: int
) -> None:
    request = make_request(fixed=replace(MR, uid=f"1.2.88.{windows}", change=change), settings=EVERY_OBJECT)
    under, _ = make_all(request)["blending"][0].BlendingSequence
    assert len(under.SoftcopyVOILUTSequence) == windows
    shown = resample_moving(request).windows
    for k, header in enumerate(request.fixed.headers):
        brightness = windowed(under, stored_values(MR.shape, k), header.SOPInstanceUID)
        grey = (request.fixed.volume.array[k] - shown.fixed_low) / (shown.fixed_high - shown.fixed_low)
        wanted = np.clip(grey, 0, 1)
        is_inverted = header.PhotometricInterpretation == "MONOCHROME1"
        np.testing.assert_allclose(1 - brightness if is_inverted else brightness, wanted, atol=1e-5)


def test_blank_slices_without_a_slope_and_falling_ones_have_windows_all_the_same() -> None:
    def change(header: pydicom.Dataset, k: int) -> None:
        header.RescaleSlope, header.RescaleIntercept = ("0", "0") if k == 3 else (str(k - 20), "4000")
        if k == 3:
            header.PixelData = bytes(len(header.PixelData))

    request = make_request(fixed=replace(MR, uid="1.2.89", change=change), settings=EVERY_OBJECT)
    under, _ = make_all(request)["blending"][0].BlendingSequence
    assert len(under.SoftcopyVOILUTSequence) == MR.shape[0]
    assert min(window.WindowWidth for window in under.SoftcopyVOILUTSequence) > 0


def test_one_frame_with_a_correction_has_no_registration_to_refer_to() -> None:
    def into_mr_frame(header: pydicom.Dataset, _k: int) -> None:
        header.FrameOfReferenceUID = f"{MR.uid}.4"

    request = make_request(moving=replace(PET, uid="1.2.6", change=into_mr_frame), settings=EVERY_OBJECT)
    assert "ReferencedSpatialRegistrationSequence" not in make_all(request)["blending"][0]
