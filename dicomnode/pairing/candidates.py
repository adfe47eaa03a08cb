"""Judges one series as the MR or the PET of a registration: refused with the reason, or ranked by ordered rules.

Flow: database/series > [candidates] > pairing/rules
Never: the time of arrival, which must not change a decision; an identity.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dicomnode.database.series import SeriesRow

Summary = Mapping[str, Any]
MIN_SLICES = 8
MANY_SLICES = 100
# An isotropic voxel's longest edge is at most this many times its shortest.
ISOTROPY_LIMIT = 1.5

# ImageType values (PS3.3 C.7.6.1.1.2 and C.8.3.1.1.1, and vendors' own) that are not an anatomical acquisition.
REFUSED_MR_IMAGE_TYPES = {
    "LOCALIZER": "a localizer",
    "SCOUT": "a localizer",
    "ADC": "a diffusion map",
    "FA": "a diffusion map",
    "TRACE": "a diffusion map",
    "TRACEW": "a diffusion map",
    "TENSOR": "a diffusion map",
    "DIFFUSION": "diffusion weighted",
    "MPR": "a reformat",
    "MIP": "a projection",
    "MINIP": "a projection",
    "PROJECTION IMAGE": "a projection",
    "SUBTRACTION": "a subtraction",
    "SUB": "a subtraction",
    "MOSAIC": "a mosaic",
    "P": "a phase image",
    "PHASE": "a phase image",
    "PHASE MAP": "a phase image",
    "FMRI": "functional",
}
REFUSED_PET_IMAGE_TYPES = {
    "MIP": "a projection",
    "PROJECTION": "a projection",
    "PROJECTION IMAGE": "a projection",
    "MPR": "a reformat",
    "LOCALIZER": "a localizer",
}
# SeriesType values (PS3.3 C.8.9.1).
REFUSED_SERIES_TYPES = {
    "GATED": "gated",
    "DYNAMIC": "dynamic",
    "REPROJECTION": "a reprojection",
}
_LOCALIZER = re.compile(r"locali[sz]er|scout|survey|(3|three).?(plane|pl\b)|aahead", re.IGNORECASE)
_NOT_ANATOMICAL = re.compile(r"\b(dwi|dti|adc|ep2d|epi|bold|fmri|asl|perfusion)\b|diffusion", re.IGNORECASE)
_T1_WORDS = re.compile(r"t1(?![0-9])|mp2?rage|bravo|f?spgr|\b[23]?d?tfe|vibe|flash", re.IGNORECASE)
_OTHER_WEIGHTING_WORDS = re.compile(r"t2|flair|\bpd\b|swi|\bdir\b|\btof", re.IGNORECASE)
_NOT_CORRECTED_WORDS = re.compile(r"\bnac\b|non.?a\.?c\b|no.?ac\b|uncorrected", re.IGNORECASE)

RankRule = tuple[str, Callable[[SeriesRow], float]]


@dataclass(frozen=True)
class Judgement:
    """What one series is worth in its role; `refusal` is empty for a candidate, and the lower rank is the better."""

    series: SeriesRow
    refusal: str
    rank: tuple[float, ...]


def judge_mr(series: SeriesRow) -> Judgement:
    """Judge a series as the fixed volume (`dicom-objects` section 7, Choosing MR)."""
    return Judgement(series, _refuse_mr(series), tuple(measure(series) for _, measure in MR_RULES))


def judge_pet(series: SeriesRow) -> Judgement:
    """Judge a series as the moving volume (`dicom-objects` section 7, Choosing PET)."""
    return Judgement(series, _refuse_pet(series), tuple(measure(series) for _, measure in PET_RULES))


def _refuse_mr(series: SeriesRow) -> str:
    words = _words(series)
    if reason := _refuse_image_type(series, REFUSED_MR_IMAGE_TYPES) or _refuse_slices(series):
        return reason
    if _LOCALIZER.search(words):
        return "its description names a localizer"
    if "EP" in _values(series, "ScanningSequence"):  # PS3.3 C.8.3.1
        return "echo planar, ScanningSequence EP"
    return "its description names diffusion, perfusion or functional imaging" if _NOT_ANATOMICAL.search(words) else ""


def _refuse_pet(series: SeriesRow) -> str:
    if reason := _refuse_image_type(series, REFUSED_PET_IMAGE_TYPES):
        return reason
    for value in _values(series, "SeriesType"):
        if value in REFUSED_SERIES_TYPES:
            return f"{REFUSED_SERIES_TYPES[value]}, SeriesType {value}"
    frames = _number(series, "NumberOfTimeSlices")
    if frames is not None and frames > 1:
        return f"dynamic, {frames:.0f} time slices where 1 is needed"
    return _refuse_slices(series)


def _refuse_image_type(series: SeriesRow, refused: Mapping[str, str]) -> str:
    for value in _values(series, "ImageType"):
        if value in refused:
            return f"{refused[value]}, ImageType {value}"
    return ""


def _refuse_slices(series: SeriesRow) -> str:
    """Refuse what is too small for a head; a series that is still received may grow."""
    slices = _slice_count(series)
    if series.state == "receiving" or slices >= MIN_SLICES:
        return ""
    return f"{slices} slices, at least {MIN_SLICES} needed"


def _rank_weighting(series: SeriesRow) -> float:
    """0 for T1, by its name or by short times and inversion; 2 for another weighting by name; 1 for unknown."""
    words = _words(series)
    if _T1_WORDS.search(words):
        return 0.0
    if _OTHER_WEIGHTING_WORDS.search(words):
        return 2.0
    echo_ms, repetition_ms = _number(series, "EchoTime"), _number(series, "RepetitionTime")
    inversion_ms = _number(series, "InversionTime") or 0.0
    if echo_ms is None or repetition_ms is None:
        return 1.0
    return 0.0 if echo_ms < 30.0 and (repetition_ms < 1000.0 or inversion_ms > 0.0) else 1.0


def _rank_3d(series: SeriesRow) -> float:
    return float("3D" not in _values(series, "MRAcquisitionType"))


def _rank_contrast(series: SeriesRow) -> float:
    return float(bool(_values(series, "ContrastBolusAgent")))


def _rank_isotropy(series: SeriesRow) -> float:
    edges = _voxel_mm(series)
    return float(len(edges) < 3 or max(edges) > ISOTROPY_LIMIT * min(edges))


def _rank_many_slices(series: SeriesRow) -> float:
    return float(_slice_count(series) <= MANY_SLICES)


def _rank_attenuation(series: SeriesRow) -> float:
    """0 for attenuation corrected, 1 where nothing is said, 2 for not corrected."""
    if _NOT_CORRECTED_WORDS.search(_words(series)):
        return 2.0
    corrections = _values(series, "CorrectedImage")
    if "ATTN" in corrections:  # PS3.3 C.8.9.1
        return 0.0
    return 2.0 if corrections else 1.0


def _rank_series_type(series: SeriesRow) -> float:
    return {"STATIC": 0.0, "WHOLE BODY": 2.0}.get(next(iter(_values(series, "SeriesType")), ""), 1.0)


def _rank_slices(series: SeriesRow) -> float:
    return -float(_slice_count(series))


def _rank_voxel(series: SeriesRow) -> float:
    edges = _voxel_mm(series)
    return edges[0] * edges[1] * edges[2] if len(edges) == 3 else float("inf")


def _rank_latest(series: SeriesRow) -> float:
    """The later series first, by its time of day: an AcquisitionTime would depend on which slice came first."""
    digits = re.sub(r"[^0-9.]", "", _first(series, "SeriesTime"))
    return -float(digits) if re.fullmatch(r"\d+(\.\d*)?", digits) else 0.0


# In order: the first rule in which two candidates differ decides between them.
MR_RULES: Sequence[RankRule] = (
    ("3D acquisition", _rank_3d),
    ("T1 weighting", _rank_weighting),
    ("no contrast agent", _rank_contrast),
    ("isotropic voxels", _rank_isotropy),
    (f"more than {MANY_SLICES} slices", _rank_many_slices),
    ("most slices", _rank_slices),
    ("latest series", _rank_latest),
)
PET_RULES: Sequence[RankRule] = (
    ("attenuation corrected", _rank_attenuation),
    ("static acquisition", _rank_series_type),
    ("most slices", _rank_slices),
    ("smallest voxel", _rank_voxel),
    ("latest series", _rank_latest),
)


def _words(series: SeriesRow) -> str:
    """What people named the series, `_` as a space so that word bounds are seen."""
    names = (series.description, _first(series, "ProtocolName"), _first(series, "SequenceName"))
    return " ".join(str(name) for name in names if name).replace("_", " ")


def _slice_count(series: SeriesRow) -> int:
    frames = _number(series, "NumberOfFrames")
    return series.instance_count if frames is None else series.instance_count * int(frames)


def _voxel_mm(series: SeriesRow) -> tuple[float, ...]:
    """Row spacing, column spacing and slice distance; shorter where one is not known."""
    slice_mm = _number(series, "SpacingBetweenSlices") or _number(series, "SliceThickness")
    spacing = [_float(value) for value in _values(series, "PixelSpacing")]
    return tuple(abs(value) for value in (*spacing, slice_mm) if value)


def _values(series: SeriesRow, keyword: str) -> tuple[str, ...]:
    """The values of an attribute, in capitals; none where it is absent or empty."""
    value = series.summary.get(keyword)
    if value is None or value == "":
        return ()
    parts = value if isinstance(value, list | tuple) else str(value).split("\\")
    return tuple(str(part).strip().upper() for part in parts)


def _first(series: SeriesRow, keyword: str) -> str:
    return next(iter(_values(series, keyword)), "")


def _number(series: SeriesRow, keyword: str) -> float | None:
    return _float(_first(series, keyword))


def _float(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
