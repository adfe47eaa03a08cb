"""Sees one MR from one PET: may they be one patient's, how far apart are they, what must a person look at.

Flow: candidates, identity > [matches] > pairing/rules, pairing/priors
Never: a clock, a database, the order of arrival; an identity in what it says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from dicomnode.database.index import MIXED_REASONS
from dicomnode.database.series import IdentifiedSeries, SeriesRow
from dicomnode.pairing.candidates import (
    CHOICE_RULE,
    MR_RULES,
    PET_RULES,
    Judgement,
    is_of_other_body_part,
    judge_mr,
    judge_pet,
)
from dicomnode.pairing.identity import IdentityCheck, compare_identities
from dicomnode.settings import PairingSettings

Rank = tuple[float | str, ...]

# In order, for what fits the other series: the first rule in which two candidates differ decides between them.
NEARNESS_RULES = (
    "requested by a person",
    "no conflict of identity",
    "no other part of the body",
    "nearest day",
    "same frame of reference",
    "same study",
    "same accession number",
)
FIXED_RULES = (
    *NEARNESS_RULES,
    CHOICE_RULE,
    *(name for name, _ in MR_RULES),
    "nearest in time",
    "lowest SeriesInstanceUID",
)
MOVING_RULES = (
    "requested by a person",
    CHOICE_RULE,
    *(name for name, _ in PET_RULES),
    "lowest SeriesInstanceUID",
)
# Further than any window: an interval that is not known sorts last.
UNKNOWN_INTERVAL = 1e12


@dataclass(frozen=True)
class Candidate:
    """A series that may be paired, with whose it is and what it is worth."""

    owner: IdentifiedSeries
    judgement: Judgement

    @property
    def row(self) -> SeriesRow:
        """The series without its identity."""
        return self.owner.row


@dataclass(frozen=True)
class Match:
    """An MR seen from one PET: whether they may be one patient's, how far apart, and its place in the order."""

    fixed: Candidate
    moving: Candidate
    identity: IdentityCheck
    refusal: str
    hold: str
    days_apart: int | None
    rank: Rank

    @property
    def is_same_frame(self) -> bool:
        """Whether one scanner laid both in one frame of reference."""
        return is_same_frame(self.fixed.row, self.moving.row)


def judge(owner: IdentifiedSeries, settings: PairingSettings, *, is_requested: bool = False) -> Candidate:
    """Judge a series in the role of its modality; what a person asked for is refused only where it cannot be used."""
    row = owner.row
    if row.modality not in ("MR", "PT"):
        return Candidate(owner, Judgement(row, f"modality {row.modality or 'missing'}, MR or PT needed", ()))
    is_mr = row.modality == "MR"
    judged = judge_mr(row, settings.choices) if is_mr else judge_pet(row, settings.choices, settings.dynamic_pet)
    if row.state == "refused" and (not is_requested or row.reason in MIXED_REASONS):
        judged = Judgement(row, row.reason, judged.rank)
    elif is_requested:
        judged = Judgement(row, "", judged.rank)
    return Candidate(owner, judged)


def match(fixed: Candidate, moving: Candidate, settings: PairingSettings, *, is_requested: bool = False) -> Match:
    """See one MR from one PET; a person's request overrides a refusal, never what must be looked at."""
    identity = compare_identities(fixed.owner.patient, moving.owner.patient, is_single_issuer=settings.is_single_issuer)
    days, seconds = _interval(fixed.row, moving.row)
    is_same_study = fixed.row.study_uid == moving.row.study_uid
    is_same_accession = fixed.row.accession_number == moving.row.accession_number != ""
    refusal = identity.refusal
    if not refusal and days is not None and days > settings.window_days:
        refusal = f"{count_days(days)} from the PET, at most {settings.window_days} allowed"
    holds = [identity.hold, *_missing_instances(fixed.row, moving.row)]
    if is_requested:
        holds, refusal = [identity.refusal, *holds], ""
    elif days is None and not is_same_study:
        holds.append("a StudyDate is missing: the days between MR and PET are not known")
    hold = "; ".join(one for one in holds if one)
    rank: Rank = (
        float(not is_requested),
        float(bool(hold)),
        float(is_of_other_body_part(fixed.row)),
        UNKNOWN_INTERVAL if days is None else float(days),
        float(not is_same_frame(fixed.row, moving.row)),
        float(not is_same_study),
        float(not is_same_accession),
        *fixed.judgement.rank,
        UNKNOWN_INTERVAL if seconds is None else seconds,
        fixed.row.series_uid,
    )
    return Match(fixed, moving, identity, refusal, hold, days, rank)


def rank_moving(candidate: Candidate, *, is_requested: bool = False) -> Rank:
    """Return the place of a PET among those of its study."""
    return (float(not is_requested), *candidate.judgement.rank, candidate.row.series_uid)


def name_rule(winner: Rank, loser: Rank, rules: Sequence[str]) -> str:
    """Name the first rule in which the winner is better."""
    return next(rule for rule, one, other in zip(rules, winner, loser, strict=True) if one != other)


def count_days(days: int) -> str:
    """Return a number of days in words."""
    return f"{days} day{'' if days == 1 else 's'}"


def is_same_frame(one: SeriesRow, other: SeriesRow) -> bool:
    """Say whether two series share a frame of reference, as a hybrid scanner's do."""
    return one.frame_of_reference_uid == other.frame_of_reference_uid != ""


def _missing_instances(fixed: SeriesRow, moving: SeriesRow) -> list[str]:
    """Say of either series that it is smaller than it, or its source, says it is."""
    holds = []
    if moving.expected_instances is not None and moving.instance_count < moving.expected_instances:
        holds.append(f"the PET counts {moving.expected_instances} instances itself, {moving.instance_count} arrived")
    for name, row in (("MR", fixed), ("PET", moving)):
        if row.source_count is not None and row.instance_count < row.source_count:
            holds.append(f"the source counts {row.source_count} instances of the {name}, {row.instance_count} arrived")
    return holds


def _interval(one: SeriesRow, other: SeriesRow) -> tuple[int | None, float | None]:
    """Days between two study dates, and seconds between the studies' times; None where one is not known."""
    days = [_parse(row.study_date, "") for row in (one, other)]
    instants = [_parse(row.study_date, row.study_time) for row in (one, other)]
    return (
        None if days[0] is None or days[1] is None else abs((days[0] - days[1]).days),
        None if instants[0] is None or instants[1] is None else abs((instants[0] - instants[1]).total_seconds()),
    )


def _parse(date: str, time: str) -> datetime | None:
    """A DA, with the hours, minutes and seconds of a TM where given (PS3.5 6.2); local time of the site."""
    try:
        return datetime.strptime(date.strip() + time.strip()[:6], "%Y%m%d%H%M%S" if time.strip() else "%Y%m%d")
    except ValueError:
        return None
