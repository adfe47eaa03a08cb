"""The derived PET keeps the PET's quantity, its times and its isotope, on the MR's grid."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np
import pydicom
import pytest

from dicomnode.outputs.objects import OutputRequest, make_outputs
from dicomnode.outputs.pet import fit_slope, quantise
from dicomnode.outputs.quantity import Quantity
from registration.resample import resample
from tests.dicomnode.outputs.known_requests import EVERY_OBJECT, MR, PET, make_request
from tests.dicomnode.series_files import SAGITTAL, Change

SUV_ATTRIBUTES = ("Units", "DecayCorrection", "SeriesDate", "SeriesTime", "PatientWeight", "PatientSize")


def make_pet(request: OutputRequest) -> list[pydicom.Dataset]:
    return [instance for kind, instance in make_outputs(request) if kind == "pt"]


@pytest.fixture(scope="module")
def images() -> list[pydicom.Dataset]:
    return make_pet(make_request())


def test_one_image_stands_on_each_mr_slice(images: list[pydicom.Dataset]) -> None:
    request = make_request()
    assert len(images) == MR.shape[0]
    for k, (image, source) in enumerate(zip(images, request.fixed.headers, strict=True)):
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            assert [item.original_string for item in image[keyword].value] == [
                item.original_string for item in source[keyword].value
            ]
        assert (image.Rows, image.Columns) == MR.shape[1:]
        assert image.FrameOfReferenceUID == source.FrameOfReferenceUID
        assert image.StudyInstanceUID == source.StudyInstanceUID
        assert image.InstanceNumber == image.ImageIndex == k + 1
        assert image.NumberOfSlices == MR.shape[0]
        assert image.ReferencedImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert "PatientPosition" not in image


@pytest.mark.parametrize("said", ["-8", "0", "1.5"])
def test_the_step_between_slices_is_the_measured_one_whatever_the_mr_says(said: str) -> None:
    def change(header: pydicom.Dataset, _k: int) -> None:
        header.SpacingBetweenSlices = said

    spec = replace(MR, uid=f"1.2.{zlib.crc32(said.encode())}", orientation=SAGITTAL, shear_mm=(0.25, 1.0, 0.0))
    request = make_request(fixed=replace(spec, change=change), settings=EVERY_OBJECT)
    found = {kind: instance for kind, instance in make_outputs(request) if instance.InstanceNumber == 1}
    (shared,) = found["multiframe"].SharedFunctionalGroupsSequence
    steps = [one.SpacingBetweenSlices for one in (found["pt"], found["rgb"], shared.PixelMeasuresSequence[0])]
    assert steps == [7.75] * 3  # along -x, to which the shear adds 0.25; that along y does not count


def test_values_are_the_resampled_ones_within_half_a_step(images: list[pydicom.Dataset]) -> None:
    request = make_request()
    wanted = resample(request.moving.volume, request.fixed.volume, request.fixed_from_moving)
    slopes = {float(image.RescaleSlope) for image in images}
    assert len(slopes) == 1
    (slope,) = slopes
    got = np.stack([np.frombuffer(image.PixelData, "<i2").reshape(image.Rows, -1) for image in images])
    assert got.max() == 32767
    assert np.abs(got * slope - np.maximum(wanted, 0)).max() <= slope / 2 * (1 + 1e-5)
    assert np.count_nonzero(got) > got.size / 10


def test_what_an_suv_needs_is_the_pet_s_own(images: list[pydicom.Dataset]) -> None:
    source = make_request().moving.headers[0]
    for image in images:
        for keyword in SUV_ATTRIBUTES:
            assert image[keyword].value == source[keyword].value, keyword
        ours, theirs = (h.RadiopharmaceuticalInformationSequence[0] for h in (image, source))
        for keyword in ("RadionuclideTotalDose", "RadionuclideHalfLife", "RadiopharmaceuticalStartTime"):
            assert ours[keyword].value == theirs[keyword].value
        assert ours.RadionuclideCodeSequence[0].CodeValue == "C-111A1"
        assert "ImageComments" not in image


def test_the_patient_weighs_what_the_pet_says_or_nothing() -> None:
    def weigh(header: pydicom.Dataset, _k: int) -> None:
        header.PatientWeight, header.PatientAge = "70", "075Y"

    request = make_request(fixed=replace(MR, uid="1.2.68", change=weigh))
    firsts = {kind: instance for kind, instance in make_outputs(request) if instance.InstanceNumber == 1}
    assert firsts["pt"].PatientWeight == "61.5"
    assert "PatientAge" not in firsts["pt"]
    assert (firsts["reg"].PatientWeight, firsts["reg"].PatientAge) == ("70", "075Y")  # of the study it joins


def test_sources_are_the_slices_that_contributed(images: list[pydicom.Dataset]) -> None:
    names = {header.SOPInstanceUID for header in make_request().moving.headers}
    counts = []
    for image in images:
        items = image.get("SourceImageSequence", [])
        counts.append(len(items))
        assert all(item.SpatialLocationsPreserved == "NO" for item in items)
        assert {item.ReferencedSOPInstanceUID for item in items} <= names
    assert 0 < max(counts) < PET.shape[0]


def test_frame_times_are_one_set_of_the_pet_s_own(images: list[pydicom.Dataset]) -> None:
    (frame,) = {(image.FrameReferenceTime, image.AcquisitionTime, image.ActualFrameDuration) for image in images}
    sources = make_request().moving.headers
    assert frame in {(s.FrameReferenceTime, s.AcquisitionTime, s.ActualFrameDuration) for s in sources}


def test_derivation_is_said_in_words_and_codes(images: list[pydicom.Dataset]) -> None:
    image = images[0]
    assert list(image.ImageType) == ["DERIVED", "PRIMARY", "RESAMPLED"]
    assert image.DerivationCodeSequence[0].CodeValue == "113085"
    assert image.SeriesDescription == "PET FDG brain registered to T1 äxial"
    assert (image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation) == (16, 16, 15, 1)
    assert image.LossyImageCompression == "00"


def without(*keywords: str) -> Change:
    def change(header: pydicom.Dataset, _k: int) -> None:
        for keyword in keywords:
            delattr(header, keyword)

    return change


def changed_pet(name: str, change: Change) -> list[pydicom.Dataset]:
    return make_pet(make_request(moving=replace(PET, uid=f"1.2.{zlib.crc32(name.encode())}", change=change)))


def test_a_poor_source_gets_defaults_and_is_called_not_quantitative() -> None:
    image = changed_pet(
        "poor",
        without(
            "Units", "CountsSource", "DecayCorrection", "FrameReferenceTime", "DecayFactor", "SeriesDate", "SeriesTime",
            "RadiopharmaceuticalInformationSequence", "CollimatorType",
        ),
    )[0]  # fmt: skip
    assert (image.Units, image.CountsSource, image.DecayCorrection) == ("NONE", "EMISSION", "START")
    assert (image.FrameReferenceTime, image.DecayFactor) == (0, 1)
    assert (image.SeriesDate, image.SeriesTime) == ("20250301", "090000")  # of the acquisition
    assert image["RadiopharmaceuticalInformationSequence"].is_empty
    assert image["CollimatorType"].is_empty
    assert image.ImageComments == (
        "Not for quantification: the source PET lacks Units, CountsSource, DecayCorrection, SeriesDate and SeriesTime, "
        "FrameReferenceTime, DecayFactor"
    )


def test_no_decay_correction_needs_no_decay_factor() -> None:
    def change(header: pydicom.Dataset, _k: int) -> None:
        del header.DecayFactor
        header.DecayCorrection = "NONE"

    image = changed_pet("no decay", change)[0]
    assert "DecayFactor" not in image
    assert "ImageComments" not in image


@pytest.mark.parametrize(
    ("offset", "found", "made_at"),
    [
        ("+0100", "+0100", ("20251009", "095320")),
        ("-0930", "-0930", ("20251008", "232320")),
        ("0100", None, ("20251009", "085320")),
        ("", None, ("20251009", "085320")),
    ],
)
def test_times_keep_the_offset_from_utc_that_an_injection_s_is_compared_by(
    offset: str, found: str | None, made_at: tuple[str, str]
) -> None:
    def change(header: pydicom.Dataset, _k: int) -> None:
        header.TimezoneOffsetFromUTC = offset
        header.RadiopharmaceuticalInformationSequence[0].RadiopharmaceuticalStartDateTime = "20250301070000+0000"

    image = changed_pet(f"offset {offset}", change)[0]
    assert image.get("TimezoneOffsetFromUTC") == found
    assert image.RadiopharmaceuticalInformationSequence[0].RadiopharmaceuticalStartDateTime == "20250301070000+0000"
    assert (image.InstanceCreationDate, image.InstanceCreationTime) == made_at


def test_study_time_stands_in_when_the_pet_has_no_other() -> None:
    image = changed_pet("study", without("SeriesDate", "SeriesTime", "AcquisitionDate", "AcquisitionTime"))[0]
    assert (image.SeriesDate, image.SeriesTime) == ("20250304", "101112")
    assert image.AcquisitionDate in {"", None}


def test_loss_once_suffered_is_said_for_ever() -> None:
    def change(header: pydicom.Dataset, k: int) -> None:
        if k == 5:
            header.LossyImageCompression, header.LossyImageCompressionRatio = "01", "10"

    image = changed_pet("lossy", change)[0]
    assert (image.LossyImageCompression, image.LossyImageCompressionRatio) == ("01", 10)


def test_quantisation_clamps_negatives_and_survives_nothing_at_all() -> None:
    values = np.array([[[-5.0, 0.0, 10.0]]], dtype=np.float32)
    slope = fit_slope(values, Quantity())
    assert quantise(values[0], slope).tolist() == [[0, 0, 32767]]
    assert fit_slope(np.zeros((1, 1, 3), np.float32), Quantity()) == 1.0


@pytest.mark.parametrize("largest", [1e-7, 0.3, 12.5, 3e4, 7.7e8])
def test_quantisation_is_within_half_a_step_at_any_scale(largest: float) -> None:
    values = np.linspace(0, largest, 1000, dtype=np.float32).reshape(10, 10, 10)
    slope = fit_slope(values, Quantity())
    assert np.abs(quantise(values, slope) * slope - values).max() <= slope / 2 * (1 + 1e-3)
    assert slope == pytest.approx(largest / 32767, rel=1e-6)


def test_a_window_narrower_than_one_is_exact() -> None:
    def change(header: pydicom.Dataset, _k: int) -> None:
        header.RescaleSlope = "0.0001"

    image = changed_pet("dim", change)[0]
    assert 0 < image.WindowWidth < 1
    assert image.VOILUTFunction == "LINEAR_EXACT"
