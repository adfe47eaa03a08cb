"""Decides which MR and PET of one patient belong together, and says of every candidate why it won or lost.

Flow: candidates, identity > [rules] > pairing/service
Never: a clock, a database, the order of arrival: the same set of series gives the same decision.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from dicomnode.database.series import IdentifiedSeries, SeriesRow
from dicomnode.pairing.candidates import MR_RULES, PET_RULES, Judgement, judge_mr, judge_pet
from dicomnode.pairing.identity import IdentityCheck, compare_identities
from dicomnode.settings import PairingSettings

# In order, for the MRs that fit one PET: the first in which two differ decides between them.
FIXED_RULES = (
    "no conflict of identity",
    "nearest day",
    "same study",
    "same accession number",
    *(name for name, _ in MR_RULES),
    "nearest in time",
    "lowest SeriesInstanceUID",
)
MOVING_RULES = (*(name for name, _ in PET_RULES), "lowest SeriesInstanceUID")
# Further than any window: an interval that is not known sorts last.
UNKNOWN_INTERVAL = 1e12


@dataclass(frozen=True)
class SeriesDecision:
    """What becomes of one series; `complete` means that it is too early to say."""

    series: SeriesRow
    state: Literal["complete", "paired", "unpaired", "refused"]
    reason: str


@dataclass(frozen=True)
class PairDecision:
    """An MR and a PET that belong together: `ready`, or `held` with what a person must look at."""

    fixed: SeriesRow
    moving: SeriesRow
    state: Literal["held", "ready"]
    reason: str
    explanation: dict[str, Any]


@dataclass(frozen=True)
class PatientDecision:
    """Everything decided about the series under one PatientID."""

    pairs: tuple[PairDecision, ...]
    series: tuple[SeriesDecision, ...]


@dataclass(frozen=True)
class _Candidate:
    """A series that may be paired, with whose it is and what it is worth."""

    owner: IdentifiedSeries
    judgement: Judgement

    @property
    def row(self) -> SeriesRow:
        return self.owner.row


@dataclass(frozen=True)
class _Match:
    """An MR seen from one PET: whether they may be one patient's, how far apart, and its place in the order."""

    fixed: _Candidate
    refusal: str
    hold: str
    warnings: tuple[str, ...]
    days_apart: int | None
    rank: tuple[float | str, ...]


def decide_patient(group: Iterable[IdentifiedSeries], now: float, settings: PairingSettings) -> PatientDecision:
    """Decide on every series under one PatientID.

    The best PET of each PET study is paired with the best MR of the patient. Nothing is paired while a candidate of
    the patient is still being received, or before the study quiet period where a study holds several candidates.

    Parameters
    ----------
    group : iterable of IdentifiedSeries
        Every series under one PatientID, in any state and order.
    now : float
        UTC epoch seconds.
    settings : PairingSettings
        Window, quiet periods and whether the site has one issuer.
    """
    judged = [_Candidate(owner, _judge(owner.row)) for owner in sorted(group, key=lambda one: one.row.series_uid)]
    refused = [c for c in judged if c.judgement.refusal]
    candidates = [c for c in judged if not c.judgement.refusal]
    decisions = [SeriesDecision(c.row, "refused", c.judgement.refusal) for c in refused]
    if reason := _too_early(candidates, now, settings):
        waiting = [SeriesDecision(c.row, "complete", reason) for c in candidates]
        return PatientDecision((), tuple(decisions + waiting))
    fixed = [c for c in candidates if c.row.modality == "MR"]
    moving = [c for c in candidates if c.row.modality == "PT"]
    pairs: list[PairDecision] = []
    reasons: dict[int, str] = {}
    for of_study in _by_study(moving):
        pair, lost = _decide_pet_study(of_study, fixed, refused, settings)
        pairs += [] if pair is None else [pair]
        reasons = lost | reasons
    paired = {row.id: pair for pair in pairs for row in (pair.fixed, pair.moving)}
    for candidate in candidates:
        row = candidate.row
        if row.id in paired:
            decisions.append(SeriesDecision(row, "paired", paired[row.id].reason))
        else:
            decisions.append(SeriesDecision(row, "unpaired", reasons.get(row.id, "no PET of this patient")))
    return PatientDecision(tuple(pairs), tuple(decisions))


def _decide_pet_study(
    moving: Sequence[_Candidate], fixed: Sequence[_Candidate], refused: Sequence[_Candidate], settings: PairingSettings
) -> tuple[PairDecision | None, dict[int, str]]:
    """Pair the best PET of a study with the best MR; say by series id why every other candidate was not taken."""
    ranked = sorted(moving, key=_moving_rank)
    best = ranked[0]
    lost_moving = {c.row.id: _lost(_moving_rank(best), _moving_rank(c), MOVING_RULES) for c in ranked[1:]}
    matches = sorted((_match(c, best, settings) for c in fixed), key=lambda match: match.rank)
    fitting = [match for match in matches if not match.refusal]
    unfit = {match.fixed.row.id: match.refusal for match in matches if match.refusal}
    lost_fixed = {match.fixed.row.id: _lost(fitting[0].rank, match.rank, FIXED_RULES) for match in fitting[1:]}
    reasons = unfit | {
        series_id: f"another series was preferred: {rule}" for series_id, rule in (lost_fixed | lost_moving).items()
    }
    if not fitting:
        why = "; ".join(sorted(set(unfit.values())))
        return None, reasons | {best.row.id: f"no MR fits: {why}" if why else "no MR of this patient"}
    chosen = fitting[0]
    explanation = {
        "fixed": _explain(chosen.fixed, fixed, lost_fixed | unfit, [c for c in refused if c.row.modality == "MR"]),
        "moving": _explain(best, moving, lost_moving, [c for c in refused if c.row.study_id == best.row.study_id]),
        "days_apart": chosen.days_apart,
        "same_frame_of_reference": _is_same_frame(chosen.fixed.row, best.row),
        "warnings": list(chosen.warnings),
    }
    state: Literal["held", "ready"] = "held" if chosen.hold else "ready"
    return PairDecision(chosen.fixed.row, best.row, state, chosen.hold, explanation), reasons


def _judge(row: SeriesRow) -> Judgement:
    if row.state == "refused":
        return Judgement(row, row.reason, ())
    if row.modality == "MR":
        return judge_mr(row)
    if row.modality == "PT":
        return judge_pet(row)
    return Judgement(row, f"modality {row.modality or 'missing'}, MR or PT needed", ())


def _too_early(candidates: Sequence[_Candidate], now: float, settings: PairingSettings) -> str:
    """Why nothing can be decided yet; empty when it can."""
    if not any(c.row.state == "complete" for c in candidates):
        return ""
    if any(c.row.state == "receiving" for c in candidates):
        return "waits for a series of this patient that is still received"
    for modality in ("MR", "PT"):
        for of_study in _by_study([c for c in candidates if c.row.modality == modality]):
            quiet_s = now - max(c.row.last_received_at for c in of_study)
            needed_s = settings.study_quiet_period_s
            if len(of_study) > 1 and quiet_s < needed_s:
                return f"waits for its study: {len(of_study)} candidates, {needed_s:.0f} s of quiet needed"
    return ""


def _match(fixed: _Candidate, moving: _Candidate, settings: PairingSettings) -> _Match:
    """See one MR from one PET."""
    identity = compare_identities(fixed.owner.patient, moving.owner.patient, is_single_issuer=settings.is_single_issuer)
    days, seconds = _interval(fixed.row, moving.row)
    is_same_study = fixed.row.study_uid == moving.row.study_uid
    is_same_accession = fixed.row.accession_number == moving.row.accession_number != ""
    refusal = identity.refusal
    if not refusal and days is not None and days > settings.window_days:
        refusal = f"{days} days from the PET, at most {settings.window_days} allowed"
    hold = _hold(identity, moving.row, is_dated=days is not None or is_same_study)
    rank: tuple[float | str, ...] = (
        float(bool(hold)),
        UNKNOWN_INTERVAL if days is None else float(days),
        float(not is_same_study),
        float(not is_same_accession),
        *fixed.judgement.rank,
        UNKNOWN_INTERVAL if seconds is None else seconds,
        fixed.row.series_uid,
    )
    return _Match(fixed, refusal, hold, identity.warnings, days, rank)


def _hold(identity: IdentityCheck, moving: SeriesRow, *, is_dated: bool) -> str:
    holds = [identity.hold] if identity.hold else []
    if moving.expected_instances is not None and moving.instance_count < moving.expected_instances:
        holds.append(f"the PET counts {moving.expected_instances} instances itself, {moving.instance_count} arrived")
    if not is_dated:
        holds.append("a StudyDate is missing: the days between MR and PET are not known")
    return "; ".join(holds)


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


def _moving_rank(candidate: _Candidate) -> tuple[float | str, ...]:
    return (*candidate.judgement.rank, candidate.row.series_uid)


def _lost(winner: tuple[float | str, ...], loser: tuple[float | str, ...], rules: Sequence[str]) -> str:
    """Name the first rule in which the winner is better."""
    return next(rule for rule, one, other in zip(rules, winner, loser, strict=True) if one != other)


def _explain(
    winner: _Candidate, candidates: Sequence[_Candidate], lost: dict[int, str], refused: Sequence[_Candidate]
) -> list[dict[str, str]]:
    """List the candidates of one role with the rule each won or lost by, the winner first."""
    others = [c for c in candidates if c is not winner]
    named = [(winner, "won", "best by every rule" if others else "only candidate")]
    named += [(c, "lost", lost[c.row.id]) for c in others]
    named += [(c, "refused", c.judgement.refusal) for c in refused]
    return [
        {"series_uid": c.row.series_uid, "description": c.row.description, "outcome": outcome, "rule": rule}
        for c, outcome, rule in named
    ]


def _is_same_frame(one: SeriesRow, other: SeriesRow) -> bool:
    return one.frame_of_reference_uid == other.frame_of_reference_uid != ""


def _by_study(candidates: Iterable[_Candidate]) -> list[list[_Candidate]]:
    studies: dict[int, list[_Candidate]] = {}
    for candidate in candidates:
        studies.setdefault(candidate.row.study_id, []).append(candidate)
    return list(studies.values())
