"""The derived PET of a mean over time: its values, times and references are those of all frames, not of the first."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pydicom
import pytest

from dicomnode.outputs.objects import OutputRequest, make_outputs
from dicomnode.settings import OutputSettings
from registration.resample import resample
from registration.volume import Volume
from tests.dicomnode.dynamic_files import DynamicSpec, find_factor, find_mean, find_reference_ms
from tests.dicomnode.outputs.known_requests import make_mean_request

SPEC = DynamicSpec()
TOTAL_S = sum(SPEC.durations_s)
ALL_UIDS = {f"{SPEC.series.uid}.3.{k}.{number}" for k in range(1, 15) for number in range(1, 5)}
Images = list[pydicom.Dataset]


@pytest.fixture(scope="module")
def request_of_mean() -> OutputRequest:
    return make_mean_request(SPEC, OutputSettings(objects=("reg", "pt", "rgb")))


@pytest.fixture(scope="module")
def made(request_of_mean: OutputRequest) -> dict[str, Images]:
    found: dict[str, Images] = {"pt": [], "rgb": [], "reg": []}
    for kind, instance in make_outputs(request_of_mean):
        found[kind].append(instance)
    return found


def test_values_are_those_of_the_weighted_mean_to_one_quantisation_step(
    request_of_mean: OutputRequest, made: dict[str, Images]
) -> None:
    mean = Volume(find_mean(SPEC).astype(np.float32), SPEC.series.affine())
    wanted = resample(mean, request_of_mean.fixed.volume, request_of_mean.fixed_from_moving)
    assert wanted.max() > 1000
    for image, values in zip(made["pt"], wanted, strict=True):
        stored = np.frombuffer(image.PixelData, "<i2").reshape(values.shape)
        assert np.abs(stored * float(image.RescaleSlope) - values.clip(0)).max() <= float(image.RescaleSlope)


def test_times_and_factors_are_those_of_one_frame_over_the_whole_time(made: dict[str, Images]) -> None:
    for image in made["pt"]:
        assert image.SeriesType == ["STATIC", "IMAGE"]
        assert image.ActualFrameDuration == 1000 * TOTAL_S
        assert float(image.FrameReferenceTime) == pytest.approx(find_reference_ms(0, TOTAL_S), abs=1)
        assert float(image.DecayFactor) == pytest.approx(find_factor(0, TOTAL_S), rel=1e-6)
        assert (image.SeriesTime, image.AcquisitionTime) == ("100000", "100000")
        assert (image.DecayCorrection, image.Units, image.DoseCalibrationFactor) == ("START", "BQML", 1)
        assert image.RadiopharmaceuticalInformationSequence[0].RadionuclideTotalDose == 250000000
        assert "ImageComments" not in image  # fit for quantification
        assert not {"NumberOfTimeSlices", "TemporalPositionIdentifier", "TriggerTime", "FrameTime"} & set(image.dir())


def test_what_the_frames_differ_in_is_left_empty() -> None:
    def change(header: pydicom.Dataset, number: int) -> None:
        header.DoseCalibrationFactor = str(1 + number)
        header.ReconstructionMethod = f"OSEM {number}"

    image = next(one for kind, one in make_outputs(make_mean_request(replace(SPEC, change=change))) if kind == "pt")
    assert image["DoseCalibrationFactor"].is_empty
    assert "ReconstructionMethod" not in image


def test_a_lossy_frame_makes_the_mean_lossy() -> None:
    def change(header: pydicom.Dataset, number: int) -> None:
        header.LossyImageCompression = "01" if number == 2 else "00"

    image = next(one for kind, one in make_outputs(make_mean_request(replace(SPEC, change=change))) if kind == "pt")
    assert image.LossyImageCompression == "01"


def test_the_derivation_says_that_it_is_a_mean(made: dict[str, Images]) -> None:
    words = "the PET is the duration-weighted mean of 4 time frames over 1080 s"
    for image in (*made["pt"], *made["rgb"]):
        assert words in image.DerivationDescription
        assert [code.CodeValue for code in image.DerivationCodeSequence] == ["113049", "113085"]
    assert words in made["reg"][0].ContributingEquipmentSequence[-1].ContributionDescription


def test_every_frame_that_went_in_is_referred_to(made: dict[str, Images]) -> None:
    for kind in ("pt", "rgb"):
        sources = [{item.ReferencedSOPInstanceUID for item in image.SourceImageSequence} for image in made[kind]]
        pet = [{uid for uid in uids if uid.startswith(f"{SPEC.series.uid}.")} for uids in sources]
        assert all(len({uid[-1] for uid in uids}) == 4 for uids in pet if uids)
        assert set().union(*pet) <= ALL_UIDS
        assert len(set().union(*pet)) >= 4 * 8
    (reg,) = made["reg"]
    moving = reg.RegistrationSequence[1].ReferencedImageSequence
    assert {item.ReferencedSOPInstanceUID for item in moving} == ALL_UIDS
    (study,) = reg.StudiesContainingOtherReferencedInstancesSequence
    named = study.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert {item.ReferencedSOPInstanceUID for item in named} == ALL_UIDS


def test_uids_follow_from_every_frame_and_from_its_being_a_mean(request_of_mean: OutputRequest) -> None:
    mean = request_of_mean.moving.mean
    assert mean is not None
    fewer = replace(mean, time_frames=mean.time_frames[:3])
    one_alone = replace(request_of_mean.moving, headers=mean.time_frames[0].headers, mean=None)
    rest = tuple(header for images in mean.time_frames[1:] for header in images.headers)
    fingerprints = {
        replace(request_of_mean, moving=moving).fingerprint
        for moving in (
            request_of_mean.moving,
            replace(request_of_mean.moving, mean=fewer),
            one_alone,
            replace(one_alone, set_aside=rest),  # the same instances, and no mean
        )
    }
    assert len(fingerprints) == 4
