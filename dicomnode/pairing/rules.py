"""Decides which MR and PET of one patient belong together, and says of every candidate why it won or lost.

Flow: candidates, identity > matches > [rules] > pairing/service
Never: a clock, a database, the order of arrival: the same set of series gives the same decision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dicomnode.database.series import IdentifiedSeries, SeriesRow
from dicomnode.pairing.completeness import is_of_the_future
from dicomnode.pairing.identity import is_placeholder_id
from dicomnode.pairing.matches import (
    FIXED_RULES,
    MOVING_RULES,
    Candidate,
    Match,
    count_days,
    judge,
    match,
    name_rule,
    rank_moving,
)
from dicomnode.settings import PairingSettings

# The series of a PET that a person asked for, with the MR it is to be laid on: ids of rows.
Requests = Mapping[int, int]
NO_REQUESTS: Requests = {}


@dataclass(frozen=True)
class SeriesDecision:
    """What becomes of one series; `complete` means that it is too early to say."""

    series: SeriesRow
    state: Literal["complete", "paired", "unpaired", "refused"]
    reason: str
    wants: Literal["", "MR", "PT"] = ""  # what this one, the best of its study, lacks: a peer may have it


@dataclass(frozen=True)
class PairDecision:
    """An MR and a PET that belong together: `ready`, or `held` with what a person must look at."""

    fixed: SeriesRow
    moving: SeriesRow
    state: Literal["held", "ready"]
    reason: str
    is_requested: bool
    explanation: dict[str, Any]


@dataclass(frozen=True)
class PatientDecision:
    """Everything decided about the series under one PatientID."""

    pairs: tuple[PairDecision, ...]
    series: tuple[SeriesDecision, ...]


def decide_patient(
    group: Iterable[IdentifiedSeries], now: float, settings: PairingSettings, requests: Requests = NO_REQUESTS
) -> PatientDecision:
    """Decide on every series under one PatientID.

    The best PET of each PET study is paired with the best MR of the patient. Nothing is paired while a candidate of
    the patient is still being received, or before each study was quiet for its period: a corrected PET may follow an
    uncorrected one, a T1 another MR.

    Parameters
    ----------
    group : iterable of IdentifiedSeries
        Every series under one PatientID, in any state and order, and those that a person asked to pair with one.
    now : float
        UTC epoch seconds.
    settings : PairingSettings
        Window, quiet periods, the site's choices and whether it has one issuer.
    requests : mapping
        What a person asked for goes before every rule.
    """
    asked = {*requests.keys(), *requests.values()}
    judged = [
        judge(owner, settings, is_requested=owner.row.id in asked)
        for owner in sorted(group, key=lambda one: one.row.series_uid)
    ]
    refused = [c for c in judged if c.judgement.refusal]
    candidates = [c for c in judged if not c.judgement.refusal]
    decisions = [SeriesDecision(c.row, "refused", c.judgement.refusal) for c in refused]
    if reason := _too_early(candidates, now, settings):
        waiting = [SeriesDecision(c.row, "complete", reason) for c in candidates]
        return PatientDecision((), tuple(decisions + waiting))
    fixed = [c for c in candidates if c.row.modality == "MR"]
    moving = [c for c in candidates if c.row.modality == "PT"]
    of_patient = _Patient(fixed, refused, settings, requests)
    pairs: list[PairDecision] = []
    lost: dict[int, SeriesDecision] = {}
    for of_study in _by_study(moving):
        pair, others = _decide_pet_study(of_study, of_patient)
        pairs += [] if pair is None else [pair]
        lost = others | lost
    lost |= _find_lonely(fixed, moving, settings)
    paired = {row.id: SeriesDecision(row, "paired", pair.reason) for pair in pairs for row in (pair.fixed, pair.moving)}
    decisions += [paired.get(c.row.id) or lost[c.row.id] for c in candidates]
    return PatientDecision(tuple(pairs), tuple(decisions))


@dataclass(frozen=True)
class _Patient:
    """What every PET study of one patient chooses from."""

    fixed: Sequence[Candidate]
    refused: Sequence[Candidate]
    settings: PairingSettings
    requests: Requests


def request_pair(fixed: IdentifiedSeries, moving: IdentifiedSeries, settings: PairingSettings) -> PairDecision:
    """Pair two series that a person names: held where their identities conflict, whatever else the rules say."""
    one, other = (judge(owner, settings, is_requested=True) for owner in (fixed, moving))
    requested = match(one, other, settings, is_requested=True)
    explanation = _explain_pair(requested, [other], _Patient([one], [], settings, NO_REQUESTS), ({}, {}))
    return _make_pair(requested, is_requested=True, explanation=explanation)


def _decide_pet_study(
    moving: Sequence[Candidate], patient: _Patient
) -> tuple[PairDecision | None, dict[int, SeriesDecision]]:
    """Pair the best PET of a study with the best MR; say by series id why every other candidate was not taken."""
    places = {c.row.id: rank_moving(c, is_requested=c.row.id in patient.requests) for c in moving}
    best = min(moving, key=lambda c: places[c.row.id])
    lost_moving = {
        c.row.id: name_rule(places[best.row.id], places[c.row.id], MOVING_RULES) for c in moving if c is not best
    }
    wanted = patient.requests.get(best.row.id)
    matches = sorted(
        (match(c, best, patient.settings, is_requested=c.row.id == wanted) for c in patient.fixed),
        key=lambda one: one.rank,
    )
    fitting = [one for one in matches if not one.refusal]
    unfit = {one.fixed.row.id: one.refusal for one in matches if one.refusal}
    lost_fixed = {one.fixed.row.id: name_rule(fitting[0].rank, one.rank, FIXED_RULES) for one in fitting[1:]}
    reasons = {
        c.row.id: SeriesDecision(c.row, "unpaired", unfit.get(c.row.id) or _lost_by(lost_fixed | lost_moving, c))
        for c in (*patient.fixed, *moving)
        if c.row.id in unfit | lost_fixed | lost_moving
    }
    if not fitting:
        why = "; ".join(sorted(set(unfit.values())))
        reason = f"no MR fits: {why}" if why else "no MR of this patient"
        return None, reasons | {best.row.id: SeriesDecision(best.row, "unpaired", reason, _want(best, "MR"))}
    explanation = _explain_pair(fitting[0], moving, patient, (lost_fixed | unfit, lost_moving))
    is_requested = fitting[0].fixed.row.id == wanted
    return _make_pair(fitting[0], is_requested=is_requested, explanation=explanation), reasons


def _make_pair(chosen: Match, *, is_requested: bool, explanation: dict[str, Any]) -> PairDecision:
    state: Literal["held", "ready"] = "held" if chosen.hold else "ready"
    how = "requested by a person" if is_requested else "one patient by PatientID and issuer"
    days = "days not known" if chosen.days_apart is None else f"{count_days(chosen.days_apart)} apart"
    reason = chosen.hold or f"{how}, {days}"
    return PairDecision(chosen.fixed.row, chosen.moving.row, state, reason, is_requested, explanation)


def _find_lonely(
    fixed: Sequence[Candidate], moving: Sequence[Candidate], settings: PairingSettings
) -> dict[int, SeriesDecision]:
    """Say of the MRs that fit no PET why they are unpaired; the best of each study wants one."""
    unfit: dict[int, str] = {}
    for candidate in fixed:
        refusals = [match(candidate, one, settings).refusal for one in moving]
        if all(refusals):
            why = "; ".join(sorted(set(refusals)))
            unfit[candidate.row.id] = f"no PET fits: {why}" if why else "no PET of this patient"
    lonely = [c for c in fixed if c.row.id in unfit]
    best = {min(of_study, key=lambda c: (*c.judgement.rank, c.row.series_uid)).row.id for of_study in _by_study(lonely)}
    return {
        c.row.id: SeriesDecision(c.row, "unpaired", unfit[c.row.id], _want(c, "PT") if c.row.id in best else "")
        for c in lonely
    }


def _want(candidate: Candidate, modality: Literal["MR", "PT"]) -> Literal["", "MR", "PT"]:
    """Look for a partner elsewhere, unless the PatientID names nobody."""
    return "" if is_placeholder_id(candidate.owner.patient.patient_id) else modality


def _lost_by(lost: Mapping[int, str], candidate: Candidate) -> str:
    return f"another series was preferred: {lost[candidate.row.id]}"


def _too_early(candidates: Sequence[Candidate], now: float, settings: PairingSettings) -> str:
    """Why nothing can be decided yet; empty when it can."""
    if not any(c.row.state == "complete" for c in candidates):
        return ""
    if any(c.row.state == "receiving" for c in candidates):
        return "waits for a series of this patient that is still received"
    for of_study in _by_study(candidates):
        quiet_s = now - max(c.row.last_received_at for c in of_study)
        needed_s = settings.study_quiet_period_s
        if quiet_s < needed_s and not is_of_the_future(quiet_s, needed_s):
            return f"waits for its study, in which something better may come: {needed_s:.0f} s of quiet needed"
    return ""


def _explain_pair(
    chosen: Match, moving: Sequence[Candidate], patient: _Patient, lost: tuple[dict[int, str], dict[int, str]]
) -> dict[str, Any]:
    """Record what the decision was made from: every candidate, and how the two sides' identities agree."""
    lost_fixed, lost_moving = lost
    refused = patient.refused
    of_pet_study = [c for c in refused if c.row.modality != "MR" and c.row.study_id == chosen.moving.row.study_id]
    return {
        "fixed": _explain(chosen.fixed, patient.fixed, lost_fixed, [c for c in refused if c.row.modality == "MR"]),
        "moving": _explain(chosen.moving, moving, lost_moving, of_pet_study),
        "days_apart": chosen.days_apart,
        "same_frame_of_reference": chosen.is_same_frame,
        "identity": dict(chosen.identity.agreement),
        "warnings": list(chosen.identity.warnings),
    }


def _explain(
    winner: Candidate, candidates: Sequence[Candidate], lost: dict[int, str], refused: Sequence[Candidate]
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


def _by_study(candidates: Iterable[Candidate]) -> list[list[Candidate]]:
    studies: dict[int, list[Candidate]] = {}
    for candidate in candidates:
        studies.setdefault(candidate.row.study_id, []).append(candidate)
    return list(studies.values())
