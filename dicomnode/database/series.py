"""Reads series for those who judge, pair, load or list them, and moves their state along the allowed moves.

Flow: receive > index > [series] > pairing|jobs|cli
Never: a rule about when a series is complete or what it pairs with; an identity where nobody asked for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, Select, bindparam, func, select, update

from dicomnode.database.index import MIXED_REASONS, PatientIdentity
from dicomnode.database.schema import associations, instances, patients, priors, queries, series, studies
from dicomnode.database.store import Store
from dicomnode.errors import StateError

# state: the states it may move to. `receiving` comes from `record_instance` when a late instance arrives.
SERIES_MOVES: Mapping[str, frozenset[str]] = {
    "receiving": frozenset({"complete", "refused"}),
    "complete": frozenset({"paired", "unpaired", "refused", "receiving"}),
    "paired": frozenset({"unpaired", "refused", "receiving", "deleted"}),
    "unpaired": frozenset({"paired", "refused", "receiving", "deleted"}),
    "refused": frozenset({"paired", "receiving", "deleted"}),  # `paired` on a person's request alone
    "deleted": frozenset({"receiving"}),
}


# The columns of `patients`, for a query that joins it; `make_identity` reads them.
IDENTITY = tuple(patients.c[field.name].label(f"identity_{field.name}") for field in fields(PatientIdentity))


@dataclass(frozen=True)
class SeriesRow:
    """A series as listings show it: no identity."""

    id: int
    series_uid: str
    study_id: int
    study_uid: str
    study_date: str
    study_time: str
    accession_number: str
    patient_key: int  # the row of `patients`: equal for equal identities
    state: str
    reason: str
    modality: str
    description: str
    frame_of_reference_uid: str
    expected_instances: int | None
    source_count: int | None
    completed_by: str
    instance_count: int
    summary: Mapping[str, Any]
    calling_ae: str
    first_received_at: float
    last_received_at: float


@dataclass(frozen=True)
class IdentifiedSeries:
    """A series with whose it is: for pairing, and for a person who asked for this one."""

    row: SeriesRow
    patient: PatientIdentity


@dataclass(frozen=True)
class Activity:
    """What is still going on, for a series or for its whole study; instants in UTC epoch seconds."""

    instance_count: int
    last_received_at: float
    open_associations: int  # that brought an instance of it and have not ended
    last_closed_at: float | None  # when the last of those that ended did
    commitment_requested: int  # instances that a storage commitment request named


@dataclass(frozen=True)
class OpenSeries:
    """A series in `receiving`, with what tells whether more may come."""

    row: SeriesRow
    series: Activity
    study: Activity
    asked_at: float | None  # when its source was last asked how many instances it has


def make_identity(row: Row[Any]) -> PatientIdentity:
    """Return whose a row is that was selected with `IDENTITY`."""
    return PatientIdentity(**{field.name: getattr(row, f"identity_{field.name}") for field in fields(PatientIdentity)})


def fetch_series_rows(connection: Connection, states: Iterable[str] = ()) -> list[SeriesRow]:
    """Return the series in any of these states, or all, oldest first."""
    return [_series_row(row) for row in connection.execute(_ordered(states))]


def fetch_identified_series(connection: Connection, states: Iterable[str]) -> list[IdentifiedSeries]:
    """Return the series in any of these states with their patients, oldest first."""
    return [_identified(row) for row in connection.execute(_ordered(states))]


def fetch_series(connection: Connection, series_uid: str) -> IdentifiedSeries:
    """Return one series by its UID.

    Raises
    ------
    StateError
        If no such series was received.
    """
    row = connection.execute(_query().where(series.c.series_uid == series_uid)).first()
    if row is None:
        raise StateError(f"series {series_uid!r}: none received with this SeriesInstanceUID")
    return _identified(row)


def fetch_series_by_id(connection: Connection, series_id: int) -> IdentifiedSeries:
    """Return one series by the id of its row, which must be there."""
    return _identified(connection.execute(_query().where(series.c.id == series_id)).one())


def fetch_open_series(connection: Connection) -> list[OpenSeries]:
    """Return every series in `receiving` with its own and its study's activity, oldest first."""
    asked = select(func.max(queries.c.created_at)).where(queries.c.kind == "count")
    return [
        OpenSeries(
            _series_row(row),
            _fetch_activity(connection, series.c.id == row.id),
            _fetch_activity(connection, series.c.study_id == row.study_id),
            connection.execute(asked.where(queries.c.series_id == row.id)).scalar_one(),
        )
        for row in connection.execute(_ordered(["receiving"])).all()
    ]


def fetch_instance_paths(connection: Connection, store: Store, series_id: int) -> list[Path]:
    """Return the files of a series, in the order of their SOP Instance UIDs."""
    query = select(instances.c.file_name).where(instances.c.series_id == series_id)
    names = connection.execute(query.order_by(instances.c.sop_instance_uid)).scalars()
    return [store.find_instance(name) for name in names]


def fetch_instance_uids(connection: Connection, series_id: int) -> list[str]:
    """Return the SOP Instance UIDs of a series, sorted: equal lists mean equal input."""
    query = select(instances.c.sop_instance_uid).where(instances.c.series_id == series_id)
    return sorted(connection.execute(query).scalars())


def fetch_series_bytes(connection: Connection, series_uid: str) -> int:
    """Return how many bytes of a series are stored, 0 for one that is not here."""
    query = select(func.sum(instances.c.size_bytes)).join(series).where(series.c.series_uid == series_uid)
    return int(connection.execute(query).scalar_one() or 0)


def complete_series(connection: Connection, series_id: int, reason: str) -> None:
    """Move a series to `complete`, and keep from what that was concluded; raises as `set_series_state` does."""
    set_series_state(connection, series_id, "complete", reason)
    connection.execute(update(series).where(series.c.id == series_id).values(completed_by=reason))


def note_commitment_request(connection: Connection, sop_instance_uids: Iterable[str], now: float) -> None:
    """Record that a sender asked for storage commitment of these instances: it has sent what it has to send."""
    is_named = instances.c.sop_instance_uid == bindparam("named_uid")
    named = update(instances).where(is_named).values(commitment_requested_at=now)
    if rows := [{"named_uid": uid} for uid in sop_instance_uids]:
        connection.execute(named, rows)


def set_series_state(connection: Connection, series_id: int, state: str, reason: str = "") -> None:
    """Move a series to another state, with the reason a person reads.

    Raises
    ------
    StateError
        If `SERIES_MOVES` does not allow the move, or the series is refused because its instances do not belong
        together; nothing changed.
    """
    row = connection.execute(select(series).where(series.c.id == series_id).with_for_update(key_share=True)).one()
    if state not in SERIES_MOVES[row.state] or row.reason in MIXED_REASONS:
        raise StateError(f"series {row.series_uid}: {row.state} ({row.reason or 'no reason'}) does not become {state}")
    connection.execute(update(series).where(series.c.id == series_id).values(state=state, reason=reason))


def _fetch_activity(connection: Connection, of_what: Any) -> Activity:
    """Sum up the instances of the series that meet a condition, and the associations that brought them."""
    received = connection.execute(
        select(
            func.count(instances.c.id),
            func.max(instances.c.received_at),
            func.count(instances.c.commitment_requested_at),
        )
        .join(series)
        .where(of_what)
    ).one()
    brought = select(instances.c.association_id).join(series).where(of_what)
    ended = connection.execute(
        select(
            func.count(associations.c.id).filter(associations.c.closed_at.is_(None)),
            func.max(associations.c.closed_at),
        ).where(associations.c.id.in_(brought))
    ).one()
    return Activity(received[0], received[1], ended[0], ended[1], received[2])


def _query() -> Select[Any]:
    count = select(func.count(instances.c.id)).where(instances.c.series_id == series.c.id).scalar_subquery()
    # Of a series that was fetched, the peer that had it said how large it is before it came.
    of_prior = select(func.max(priors.c.instance_count)).where(priors.c.series_uid == series.c.series_uid)
    source_count = func.coalesce(series.c.source_count, of_prior.scalar_subquery())
    return (
        select(
            *(column for column in series.c if column.name != "source_count"),
            source_count.label("source_count"),
            studies.c.study_uid,
            studies.c.study_date,
            studies.c.study_time,
            studies.c.accession_number,
            *IDENTITY,
            count.label("instance_count"),
        )
        .join(studies, studies.c.id == series.c.study_id)
        .join(patients, patients.c.id == series.c.patient_id)
    )


def _ordered(states: Iterable[str]) -> Select[Any]:
    wanted = list(states)
    query = _query().order_by(series.c.first_received_at, series.c.id)
    return query.where(series.c.state.in_(wanted)) if wanted else query


def _series_row(row: Row[Any]) -> SeriesRow:
    return SeriesRow(
        id=row.id,
        series_uid=row.series_uid,
        study_id=row.study_id,
        study_uid=row.study_uid,
        study_date=row.study_date,
        study_time=row.study_time,
        accession_number=row.accession_number,
        patient_key=row.patient_id,
        state=row.state,
        reason=row.reason,
        modality=row.modality,
        description=row.description,
        frame_of_reference_uid=row.frame_of_reference_uid,
        expected_instances=row.expected_instances,
        source_count=row.source_count,
        completed_by=row.completed_by,
        instance_count=row.instance_count,
        summary=row.summary,
        calling_ae=row.calling_ae,
        first_received_at=row.first_received_at,
        last_received_at=row.last_received_at,
    )


def _identified(row: Row[Any]) -> IdentifiedSeries:
    return IdentifiedSeries(_series_row(row), make_identity(row))
