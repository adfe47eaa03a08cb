"""What peers have of a patient whose series has no partner here, and which of it is fetched.

Flow: send/queries > [priors] > pairing/priors > queries > send; cli reads
Never: a rule; an identity outside `patients`; what this node has already, or made itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from dicomnode.database.index import DELETED, PatientIdentity, find_or_add_patient
from dicomnode.database.queries import UNANSWERED, Query
from dicomnode.database.schema import outputs, patients, priors, queries, series
from dicomnode.database.series import IDENTITY, IdentifiedSeries, SeriesRow, make_identity


@dataclass(frozen=True)
class FoundSeries:
    """A series as a peer's C-FIND describes it; `instance_count` is None where it does not say."""

    study_uid: str
    study_date: str
    study_time: str
    accession_number: str
    series_uid: str
    modality: str
    description: str
    instance_count: int | None
    patient: PatientIdentity


@dataclass(frozen=True)
class Prior:
    """A found series, what was decided about it, and how pairing sees it: a series in state `found`."""

    id: int
    peer: str
    state: str
    reason: str
    series: IdentifiedSeries


def record_priors(connection: Connection, query: Query, found: Iterable[FoundSeries]) -> int:
    """Record what a peer has, once; return how many are new and are neither here nor made here."""
    added = 0
    for one in found:
        is_known = (
            select(series.c.id)
            .where(series.c.series_uid == one.series_uid, series.c.state != DELETED)
            .union_all(
                select(outputs.c.id).where(outputs.c.series_uid == one.series_uid),
                select(priors.c.id).where(
                    priors.c.series_id == query.series_id,
                    priors.c.peer == query.peer,
                    priors.c.series_uid == one.series_uid,
                ),
            )
        )
        if connection.execute(is_known).first() is not None:
            continue
        values = {name: value for name, value in vars(one).items() if name != "patient"}
        owner = {"series_id": query.series_id, "patient_id": find_or_add_patient(connection, one.patient)}
        connection.execute(insert(priors).values(**values, **owner, peer=query.peer, state="found"))
        added += 1
    return added


def fetch_seekers(connection: Connection, settled_before: float, fetches_at_most: int) -> list[int]:
    """Return the ids of the series for which a prior is to be chosen now.

    That is, once every peer was asked and nothing is on its way: those with priors that nobody has judged; and those
    that are unpaired still, though what was chosen has come and been judged, or did not come by `settled_before` (UTC
    epoch seconds), as long as fewer than `fetches_at_most` were chosen. A peer that is down is not waited for.
    """
    is_first = (queries.c.kind == "priors") & (queries.c.state == "owed")
    is_fetched = (queries.c.kind == "fetch") & queries.c.state.in_(UNANSWERED)
    asking = select(queries.c.series_id).where(is_first | is_fetched)
    found = select(priors.c.series_id).where(priors.c.state == "found")
    chosen = select(priors.c.series_id).where(priors.c.state == "chosen")
    coming = (
        chosen.join(queries, queries.c.prior_id == priors.c.id)
        .outerjoin(series, series.c.series_uid == priors.c.series_uid)
        .where(
            series.c.state.in_(("receiving", "complete"))
            | (series.c.id.is_(None) & (queries.c.state == "done") & (queries.c.finished_at > settled_before))
        )
    )
    many = chosen.group_by(priors.c.series_id).having(func.count(priors.c.id) >= fetches_at_most)
    next_best = (
        select(priors.c.series_id)
        .join(series, series.c.id == priors.c.series_id)
        .where(priors.c.state == "lost", series.c.state == "unpaired")
        .where(priors.c.series_id.in_(chosen), priors.c.series_id.not_in(many))
    )
    is_settled = series.c.id.not_in(asking) & series.c.id.not_in(coming)
    seekers = select(series.c.id).where(is_settled, series.c.id.in_(found) | series.c.id.in_(next_best))
    return list(connection.execute(seekers.order_by(series.c.id)).scalars())


def fetch_priors(connection: Connection, series_id: int) -> list[Prior]:
    """Return what was found for a series, oldest first."""
    query = select(priors, *IDENTITY).join(patients, patients.c.id == priors.c.patient_id)
    of_series = query.where(priors.c.series_id == series_id).order_by(priors.c.id)
    return [_prior(row) for row in connection.execute(of_series)]


def set_prior_state(connection: Connection, prior_id: int, state: str, reason: str) -> None:
    """Record what was decided about a found series: `chosen`, `lost` or `refused`."""
    connection.execute(update(priors).where(priors.c.id == prior_id).values(state=state, reason=reason))


def _prior(row: Row[Any]) -> Prior:
    unknown: dict[str, Any] = {"frame_of_reference_uid": "", "expected_instances": None, "summary": {}}
    seen = SeriesRow(
        id=row.id,
        series_uid=row.series_uid,
        study_id=0,
        study_uid=row.study_uid,
        study_date=row.study_date,
        study_time=row.study_time,
        accession_number=row.accession_number,
        patient_key=row.patient_id,
        state="found",
        reason="",
        modality=row.modality,
        description=row.description,
        source_count=None,
        completed_by="",
        instance_count=row.instance_count or 0,
        calling_ae="",
        first_received_at=0.0,
        last_received_at=0.0,
        **unknown,
    )
    return Prior(row.id, row.peer, row.state, row.reason, IdentifiedSeries(seen, make_identity(row)))
