"""Which MR and PET series may be registered, and which is the better one."""

from __future__ import annotations

from typing import Any

import pytest

from dicomnode.database.series import SeriesRow
from dicomnode.pairing.candidates import CHOICE_RULE, MR_RULES, PET_RULES, judge_mr, judge_pet
from tests.values import MR_ROW, PET_ROW, replace_row

DYNAMIC = {"SeriesType": ["DYNAMIC", "IMAGE"], "NumberOfTimeSlices": 12}


def _mr(**values: Any) -> SeriesRow:
    return replace_row(MR_ROW, **values)


def _pet(**values: Any) -> SeriesRow:
    return replace_row(PET_ROW, **values)


@pytest.mark.parametrize(
    ("series", "refusal"),
    [
        (_mr(), ""),
        (_mr(summary={"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}), "a localizer, ImageType LOCALIZER"),
        (_mr(description="3-Plane Loc", summary={"ImageType": None}), "its description names a localizer"),
        (_mr(description="AAHead_Scout_64ch"), "its description names a localizer"),
        (
            _mr(summary={"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]}),
            "diffusion weighted, ImageType DIFFUSION",
        ),
        (_mr(summary={"ImageType": ["DERIVED", "SECONDARY", "ADC"]}), "a diffusion map, ImageType ADC"),
        (_mr(summary={"ImageType": ["DERIVED", "SECONDARY", "MPR"]}), "a reformat, ImageType MPR"),
        (_mr(summary={"ImageType": ["DERIVED", "PRIMARY", "SUBTRACTION"]}), "a subtraction, ImageType SUBTRACTION"),
        (
            _mr(summary={"ImageType": ["DERIVED", "PRIMARY", "PROJECTION IMAGE", "MIP"]}),
            "a projection, ImageType PROJECTION IMAGE",
        ),
        (_mr(summary={"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]}), "a mosaic, ImageType MOSAIC"),
        (_mr(summary={"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]}), "a phase image, ImageType P"),
        (_mr(summary={"ScanningSequence": ["EP", "SE"]}), "echo planar, ScanningSequence EP"),
        (_mr(description="ep2d_diff_b1000"), "its description names diffusion, perfusion or functional imaging"),
        (_mr(description="DTI 64 dir"), "its description names diffusion, perfusion or functional imaging"),
        (_mr(instance_count=3), "3 slices, at least 8 needed"),
        (_mr(instance_count=1, summary={"NumberOfFrames": 192}), ""),
        (_mr(instance_count=3, state="receiving"), ""),
        (_mr(summary={"ImageType": ["DERIVED", "PRIMARY", "M", "NORM", "DIS3D"]}), ""),
        (_mr(description="Depiction"), ""),
        (
            _mr(summary={"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"]}),
            "a reformat, ImageType REFORMATTED",
        ),
        (_mr(description="T1 MIP cor"), "its description names a projection or a subtraction"),
        (_mr(description="T1w_MPR_sag"), ""),  # short for MPRAGE
    ],
)
def test_an_mr_is_refused_with_its_reason(series: SeriesRow, refusal: str) -> None:
    assert judge_mr(series).refusal == refusal


@pytest.mark.parametrize(
    ("series", "refusal"),
    [
        (_pet(), ""),
        (_pet(summary={"SeriesType": ["WHOLE BODY", "IMAGE"]}), ""),
        (_pet(summary={"SeriesType": ["GATED", "IMAGE"]}), "gated, SeriesType GATED"),
        (
            _pet(summary={"SeriesType": ["DYNAMIC", "IMAGE"]}),
            "dynamic and pairing.dynamic_pet is refuse, SeriesType DYNAMIC",
        ),
        (_pet(summary={"SeriesType": ["STATIC", "REPROJECTION"]}), "a reprojection, SeriesType REPROJECTION"),
        (
            _pet(summary={"NumberOfTimeSlices": 12}),
            "dynamic and pairing.dynamic_pet is refuse, 12 time slices where 1 is needed",
        ),
        (_pet(summary={"ImageType": ["DERIVED", "SECONDARY", "MIP"]}), "a projection, ImageType MIP"),
        (_pet(instance_count=1), "1 slices, at least 8 needed"),
        (_pet(summary={"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED"]}), "a reformat, ImageType REFORMATTED"),
        (_pet(description="FDG MIP"), "its description names a projection"),
        (_pet(state="found", instance_count=1), ""),
        (_pet(summary={"SeriesType": None, "ImageType": None}), ""),
    ],
)
def test_a_pet_is_refused_with_its_reason(series: SeriesRow, refusal: str) -> None:
    assert judge_pet(series).refusal == refusal


@pytest.mark.parametrize(
    ("series", "refusal"),
    [
        (_pet(summary=DYNAMIC, instance_count=8 * 12), ""),
        (_pet(summary={"NumberOfTimeSlices": 12}, instance_count=8 * 12), ""),
        (_pet(summary=DYNAMIC, instance_count=7 * 12), "7 slices, at least 8 needed"),
        (
            _pet(summary={"SeriesType": ["GATED", "IMAGE"]}),
            "gated and nothing says how long each gate was counted, SeriesType GATED",
        ),
        (_pet(summary={"SeriesType": ["DYNAMIC", "REPROJECTION"]}), "a reprojection, SeriesType REPROJECTION"),
    ],
)
def test_where_its_mean_is_asked_for_a_dynamic_pet_is_a_candidate(series: SeriesRow, refusal: str) -> None:
    assert judge_pet(series, (), "mean").refusal == refusal


@pytest.mark.parametrize(
    ("better", "worse", "rule"),
    [
        (_mr(), _mr(summary={"MRAcquisitionType": "2D"}), "3D acquisition"),
        (_mr(), _mr(description="t2_space_sag"), "T1 weighting"),
        (_mr(), _mr(description="flair 3d", summary={"InversionTime": 2500.0}), "T1 weighting"),
        (
            _mr(description=""),
            _mr(description="", summary={"EchoTime": 90.0, "RepetitionTime": 4000.0}),
            "T1 weighting",
        ),
        (
            _mr(description="", summary={"InversionTime": None, "RepetitionTime": 8.0}),
            _mr(description="tof"),
            "T1 weighting",
        ),
        (_mr(), _mr(summary={"ContrastBolusAgent": "Gadovist"}), "no contrast agent"),
        (_mr(), _mr(summary={"SliceThickness": 5.0}), "isotropic voxels"),
        (_mr(instance_count=101), _mr(instance_count=100), "more than 100 slices"),
        (_mr(instance_count=192), _mr(instance_count=176), "most slices"),
        (_mr(summary={"SeriesTime": "101500.25"}), _mr(summary={"SeriesTime": "101400"}), "latest series"),
    ],
)
def test_the_better_mr_wins_by_a_named_rule(better: SeriesRow, worse: SeriesRow, rule: str) -> None:
    one, other = judge_mr(better).rank, judge_mr(worse).rank

    first = next(index for index, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1])
    assert one < other
    assert (CHOICE_RULE, *(name for name, _ in MR_RULES))[first] == rule


@pytest.mark.parametrize(
    ("better", "worse", "rule"),
    [
        (_pet(), _pet(summary={"CorrectedImage": ["DECY"]}), "attenuation corrected"),
        (_pet(), _pet(summary={"CorrectedImage": None}), "attenuation corrected"),
        (_pet(), _pet(description="Brain NAC"), "attenuation corrected"),
        (
            _pet(summary={"CorrectedImage": None, "AttenuationCorrected": "YES"}),
            _pet(summary={"CorrectedImage": None, "AttenuationCorrected": "NO"}, instance_count=200),
            "attenuation corrected",
        ),
        (_pet(), _pet(summary={"SeriesType": ["WHOLE BODY", "IMAGE"]}, instance_count=300), "static acquisition"),
        (_pet(), _pet(summary=DYNAMIC, instance_count=1000), "static acquisition"),
        (_pet(), _pet(summary={"NumberOfTimeSlices": 12}, instance_count=1000), "static acquisition"),
        (
            _pet(summary={"SeriesType": ["WHOLE BODY", "IMAGE"]}),
            _pet(summary=DYNAMIC, instance_count=1000),
            "static acquisition",
        ),
        (_pet(summary=DYNAMIC), _pet(summary={**DYNAMIC, "CorrectedImage": ["DECY"]}), "attenuation corrected"),
        (
            _pet(summary={**DYNAMIC, "NumberOfTimeSlices": 4}, instance_count=4 * 90),
            _pet(summary=DYNAMIC, instance_count=12 * 47),
            "most slices",
        ),
        (_pet(instance_count=109), _pet(), "most slices"),
        (_pet(summary={"PixelSpacing": [1.0, 1.0]}), _pet(), "smallest voxel"),
        (_pet(summary={"SeriesTime": "111500"}), _pet(summary={"SeriesTime": "111400"}), "latest series"),
    ],
)
def test_the_better_pet_wins_by_a_named_rule(better: SeriesRow, worse: SeriesRow, rule: str) -> None:
    one, other = judge_pet(better).rank, judge_pet(worse).rank

    first = next(index for index, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1])
    assert one < other
    assert (CHOICE_RULE, *(name for name, _ in PET_RULES))[first] == rule


@pytest.mark.parametrize("text", ["", "not a number", "1e400", "-"])
def test_odd_values_are_no_error(text: str) -> None:
    summary = {
        "PixelSpacing": [text],
        "SliceThickness": text,
        "SeriesTime": text,
        "EchoTime": text,
        "NumberOfFrames": "3",
    }

    assert judge_mr(_mr(summary=summary, instance_count=9)).refusal == ""
    assert judge_mr(_mr(summary={"NumberOfFrames": text}, instance_count=9)).refusal == ""
    assert judge_pet(_pet(summary=summary)).refusal == ""
