"""Judges one series as the MR or the PET of a registration: refused with the reason, or ranked by ordered rules.

Flow: database/series, attributes > [candidates] > pairing/rules
Never: the time of arrival, which must not change a decision; an identity.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from dicomnode.database.series import SeriesRow
from dicomnode.pairing.attributes import (
    count_slices,
    count_time_frames,
    find_extent_mm,
    find_first,
    find_image_types,
    find_number,
    find_values,
    find_voxel_mm,
    find_words,
)
from dicomnode.setting_values import DynamicPet
from dicomnode.settings import ChoiceSettings

MIN_SLICES = 8
MANY_SLICES = 100
# An isotropic voxel's longest edge is at most this many times its shortest.
ISOTROPY_LIMIT = 1.5
# A head is about 150 mm wide, 190 mm long and from vertex to chin more than 200 mm high.
WHOLE_HEAD_MM = 140.0

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
    "REFORMATTED": "a reformat",
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
    "REFORMATTED": "a reformat",
    "RESAMPLED": "registered to another series already",
    "LOCALIZER": "a localizer",
}
# SeriesType values (PS3.3 C.8.9.1), by what is done with a dynamic PET. A gate has no duration of its own: its
# ActualFrameDuration is the time over which all gates were counted in turn.
DYNAMIC_REFUSED = "dynamic and pairing.dynamic_pet is refuse"
REFUSED_SERIES_TYPES: Mapping[DynamicPet, Mapping[str, str]] = {
    "refuse": {"GATED": "gated", "DYNAMIC": DYNAMIC_REFUSED, "REPROJECTION": "a reprojection"},
    "mean": {"GATED": "gated and nothing says how long each gate was counted", "REPROJECTION": "a reprojection"},
}
# In order of preference; a PET that says nothing of itself stands between.
SERIES_TYPE_RANKS = {"STATIC": 0.0, "WHOLE BODY": 2.0}
UNKNOWN_TYPE_RANK, DYNAMIC_RANK = 1.0, 3.0
# BodyPartExamined (PS3.16 table L-1) that holds no brain. Many sites leave it as it was for the patient before: it
# prefers one MR to another, and refuses none.
OTHER_BODY_PARTS = {
    "ABDOMEN", "ABDOMENPELVIS", "ANKLE", "ARM", "BREAST", "CHEST", "CHESTABDOMEN", "CHESTABDPELVIS", "COCCYX", "CSPINE",
    "CTSPINE", "ELBOW", "EXTREMITY", "FINGER", "FOOT", "FOREARM", "HAND", "HEART", "HIP", "HUMERUS", "KNEE", "LEG",
    "LIVER", "LSPINE", "LSSPINE", "PANCREAS", "PELVIS", "PROSTATE", "SHOULDER", "SPINE", "SSPINE", "THIGH", "TLSPINE",
    "TSPINE", "UTERUS", "WRIST",
}  # fmt: skip
_LOCALIZER = re.compile(r"locali[sz]er|scout|survey|(3|three).?(plane|pl\b)|aahead", re.IGNORECASE)
_NOT_ANATOMICAL = re.compile(r"\b(dwi|dti|adc|ep2d|epi|bold|fmri|asl|perfusion)\b|diffusion", re.IGNORECASE)
# Not MPR: to many sites that is short for MPRAGE.
_PROCESSED = re.compile(r"\b(mip|minip|subtraction)\b", re.IGNORECASE)
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


def judge_mr(series: SeriesRow, choices: Sequence[ChoiceSettings] = ()) -> Judgement:
    """Judge a series as the fixed volume by the ordered rules of this module; `choices` go before every rule."""
    return _judge(series, choices, _refuse_mr, MR_RULES)


def judge_pet(
    series: SeriesRow, choices: Sequence[ChoiceSettings] = (), dynamic_pet: DynamicPet = "refuse"
) -> Judgement:
    """Judge a series as the moving volume by the ordered rules of this module; `choices` go before every rule."""
    return _judge(series, choices, partial(_refuse_pet, dynamic_pet=dynamic_pet), PET_RULES)


def is_of_other_body_part(series: SeriesRow) -> bool:
    """Say whether a series calls itself one of a part of the body that holds no brain."""
    return find_first(series, "BodyPartExamined") in OTHER_BODY_PARTS


def is_dynamic(series: SeriesRow) -> bool:
    """Say whether a PET has several time frames, as far as it says that itself."""
    return find_first(series, "SeriesType") == "DYNAMIC" or count_time_frames(series) > 1


def find_choice(series: SeriesRow, choices: Sequence[ChoiceSettings]) -> ChoiceSettings | None:
    """Return the first of the administrator's choices that is about this series, or None."""
    for choice in choices:
        is_from_there = choice.calling_ae in ("", series.calling_ae) and choice.modality == series.modality
        if is_from_there and re.search(choice.description, series.description, re.IGNORECASE):
            return choice
    return None


# Before every rule of either role.
CHOICE_RULE = "chosen by pairing.choices"


def _judge(
    series: SeriesRow,
    choices: Sequence[ChoiceSettings],
    refuse: Callable[[SeriesRow], str],
    rules: Sequence[RankRule],
) -> Judgement:
    choice = find_choice(series, choices)
    ranks = tuple(measure(series) for _, measure in rules)
    if choice is None:
        return Judgement(series, refuse(series) or _refuse_slices(series), (1.0, *ranks))
    if choice.take == "never":
        return Judgement(series, f"pairing.choices: never {choice.description!a}", (1.0, *ranks))
    return Judgement(series, _refuse_slices(series), (0.0, *ranks))


def _refuse_mr(series: SeriesRow) -> str:
    words = find_words(series)
    if reason := _refuse_image_type(series, REFUSED_MR_IMAGE_TYPES):
        return reason
    if _LOCALIZER.search(words):
        return "its description names a localizer"
    if "EP" in find_values(series, "ScanningSequence"):  # PS3.3 C.8.3.1
        return "echo planar, ScanningSequence EP"
    if _NOT_ANATOMICAL.search(words):
        return "its description names diffusion, perfusion or functional imaging"
    return "its description names a projection or a subtraction" if _PROCESSED.search(words) else ""


def _refuse_pet(series: SeriesRow, dynamic_pet: DynamicPet) -> str:
    if reason := _refuse_image_type(series, REFUSED_PET_IMAGE_TYPES):
        return reason
    refused = REFUSED_SERIES_TYPES[dynamic_pet]
    for value in find_values(series, "SeriesType"):
        if value in refused:
            return f"{refused[value]}, SeriesType {value}"
    if find_first(series, "CountsSource") == "TRANSMISSION":  # PS3.3 C.8.9.1
        return "a map of attenuation, CountsSource TRANSMISSION"
    if dynamic_pet == "refuse" and (frames := count_time_frames(series)) > 1:
        return f"{DYNAMIC_REFUSED}, {frames} time slices where 1 is needed"
    return "its description names a projection" if _PROCESSED.search(find_words(series)) else ""


def _refuse_image_type(series: SeriesRow, refused: Mapping[str, str]) -> str:
    """Refuse a series all of whose kinds of images are refused; reading chooses among the others."""
    refusals = [
        next((f"{refused[value]}, ImageType {value}" for value in kind if value in refused), "")
        for kind in find_image_types(series)
    ]
    return refusals[0] if all(refusals) else ""


def _refuse_slices(series: SeriesRow) -> str:
    """Refuse what is too small for a head; one that is still received, or not here yet, may grow."""
    slices = _count_positions(series)
    if series.state in ("receiving", "found") or slices >= MIN_SLICES:
        return ""
    return f"{slices} slices, at least {MIN_SLICES} needed"


def _rank_weighting(series: SeriesRow) -> float:
    """0 for T1, by its name or by short times and inversion; 2 for another weighting by name; 1 for unknown."""
    words = find_words(series)
    if _T1_WORDS.search(words):
        return 0.0
    if _OTHER_WEIGHTING_WORDS.search(words):
        return 2.0
    echo_ms, repetition_ms = find_number(series, "EchoTime"), find_number(series, "RepetitionTime")
    inversion_ms = find_number(series, "InversionTime") or 0.0
    if echo_ms is None or repetition_ms is None:
        return 1.0
    return 0.0 if echo_ms < 30.0 and (repetition_ms < 1000.0 or inversion_ms > 0.0) else 1.0


def _rank_3d(series: SeriesRow) -> float:
    return float("3D" not in find_values(series, "MRAcquisitionType"))


def _rank_contrast(series: SeriesRow) -> float:
    return float(bool(find_values(series, "ContrastBolusAgent")))


def _rank_isotropy(series: SeriesRow) -> float:
    edges = find_voxel_mm(series)
    return float(len(edges) < 3 or max(edges) > ISOTROPY_LIMIT * min(edges))


def _rank_many_slices(series: SeriesRow) -> float:
    return float(count_slices(series) <= MANY_SLICES)


def _rank_whole_head(series: SeriesRow) -> float:
    extent = find_extent_mm(series)
    return float(not extent or min(extent) < WHOLE_HEAD_MM)


def _rank_attenuation(series: SeriesRow) -> float:
    """0 for attenuation corrected, 1 where nothing is said, 2 for not corrected."""
    if _NOT_CORRECTED_WORDS.search(find_words(series)):
        return 2.0
    said = {"YES": 0.0, "NO": 2.0}.get(find_first(series, "AttenuationCorrected"))  # Enhanced PET: PS3.3 C.8.22.6
    corrections = find_values(series, "CorrectedImage")
    if said is not None:
        return said
    if "ATTN" in corrections:  # PS3.3 C.8.9.1
        return 0.0
    return 2.0 if corrections else 1.0


def _rank_series_type(series: SeriesRow) -> float:
    if is_dynamic(series):
        return DYNAMIC_RANK
    return SERIES_TYPE_RANKS.get(find_first(series, "SeriesType"), UNKNOWN_TYPE_RANK)


def _rank_slices(series: SeriesRow) -> float:
    return -float(_count_positions(series))


def _count_positions(series: SeriesRow) -> int:
    """Return how many slices one time frame has, as far as the series counts its time frames."""
    return count_slices(series) // count_time_frames(series)


def _rank_voxel(series: SeriesRow) -> float:
    edges = find_voxel_mm(series)
    return edges[0] * edges[1] * edges[2] if len(edges) == 3 else float("inf")


def _rank_latest(series: SeriesRow) -> float:
    """The later series first, by its time of day: an AcquisitionTime would depend on which slice came first."""
    digits = re.sub(r"[^0-9.]", "", find_first(series, "SeriesTime"))
    return -float(digits) if re.fullmatch(r"\d+(\.\d*)?", digits) else 0.0


# In order: the first rule in which two candidates differ decides between them.
MR_RULES: Sequence[RankRule] = (
    ("3D acquisition", _rank_3d),
    ("T1 weighting", _rank_weighting),
    ("no contrast agent", _rank_contrast),
    ("isotropic voxels", _rank_isotropy),
    (f"more than {MANY_SLICES} slices", _rank_many_slices),
    ("whole head", _rank_whole_head),
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
