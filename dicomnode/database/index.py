"""Records what was received: associations, patients, studies, series, instances, and what came twice.

Flow: receive > [index] > schema, engine
Never: a file (`store` and `receive.spool` keep those in step with the rows); a decision about completeness or pairs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import reduce
from typing import Any

from sqlalchemy import Connection, Row, Table, bindparam, func, insert, inspect, select, update
from sqlalchemy.dialects import postgresql, sqlite

from dicomnode.database.outbox import cancel_series
from dicomnode.database.schema import associations, conflicts, instances, outputs, patients, series, studies

# The series stays refused, whatever comes later: its instances do not belong together.
MIXED_PATIENTS = "its instances name more than one patient, or one patient in different ways"
MIXED_STUDIES = "its instances name more than one study"
RENAMED_PATIENT = "instances of it came again under another PatientID; the first are kept, and used no more"
MIXED_REASONS = (MIXED_PATIENTS, MIXED_STUDIES, RENAMED_PATIENT)
IMAGE_TYPES_AT_MOST = 16  # of one series; real ones have up to 4
DELETED = "deleted"  # the state of a series whose instances went
_TOUCHED = ("patient_id", "study_id", "last_received_at", "expected_instances", "summary", "state", "reason")
_TOUCH = (
    update(series).where(series.c.id == bindparam("touched_id")).values({name: bindparam(name) for name in _TOUCHED})
)


@dataclass(frozen=True)
class PatientIdentity:
    """Who an instance says the patient is; empty where it does not say."""

    patient_id: str
    issuer: str
    name: str
    birth_date: str
    sex: str


@dataclass(frozen=True)
class StudyHeader:
    """What an instance says about its study."""

    study_uid: str
    study_date: str
    study_time: str
    accession_number: str


@dataclass(frozen=True)
class SeriesHeader:
    """What an instance says about its series; `summary` holds attributes by DICOM keyword, never an identity."""

    series_uid: str
    modality: str
    description: str
    frame_of_reference_uid: str
    expected_instances: int | None
    summary: Mapping[str, Any]


@dataclass(frozen=True)
class InstanceHeader:
    """What the index keeps of one instance."""

    sop_instance_uid: str
    sop_class_uid: str
    patient: PatientIdentity
    study: StudyHeader
    series: SeriesHeader


@dataclass(frozen=True)
class StoredFile:
    """A durable file: its random name, and the length and SHA-256 of its data set without preamble and File Meta."""

    file_name: str
    transfer_syntax_uid: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Arrival:
    """By which association, from whom and when (UTC epoch seconds) an instance came."""

    association_id: int
    calling_ae: str
    received_at: float


class Recorded(Enum):
    """What the index made of an instance."""

    NEW = "new"  # a row was added: the file belongs into the store
    IDENTICAL = "identical"  # the same bytes are indexed: nothing changed
    CONFLICT = "conflict"  # other bytes are indexed: the file belongs to the conflicts
    KNOWN_CONFLICT = "known conflict"  # and these other bytes are kept there already: nothing changed
    OWN_OUTPUT = "own output"  # the node made it, and somebody sent it back: only counted


@dataclass(frozen=True)
class Recording:
    """What the index made of an instance, and the name of the file that its row names (empty where none does)."""

    kind: Recorded
    file_name: str = ""


def open_association(connection: Connection, *, node: str, calling_ae: str, address: str, now: float) -> int:
    """Record an accepted association and return its id; `node` is the process that holds it."""
    values = {"node": node, "calling_ae": calling_ae, "address": address, "opened_at": now}
    return _only_key(connection.execute(insert(associations).values(values)).inserted_primary_key)


def find_association(connection: Connection, node: str, calling_ae: str, address: str, opened_at: float) -> int | None:
    """Return the id of an association that a process has recorded, if it has."""
    values = {"node": node, "calling_ae": calling_ae, "address": address, "opened_at": opened_at}
    query = select(associations.c.id).where(*(associations.c[name] == value for name, value in values.items()))
    return connection.execute(query).scalars().first()


def close_association(connection: Connection, association_id: int, now: float) -> None:
    """Record that an association ended, in whatever way."""
    still_open = (associations.c.id == association_id) & associations.c.closed_at.is_(None)
    connection.execute(update(associations).where(still_open).values(closed_at=now))


def close_lost_associations(connection: Connection, living: Collection[str], now: float) -> int:
    """Close what processes that are not among the living nodes left open; return how many."""
    lost = associations.c.node.not_in(living) & associations.c.closed_at.is_(None)
    return connection.execute(update(associations).where(lost).values(closed_at=now)).rowcount


def fetch_newest_opening(connection: Connection) -> float | None:
    """Return when the latest association was opened by the clock of its node, UTC epoch seconds; None before any."""
    newest: float | None = connection.execute(select(func.max(associations.c.opened_at))).scalar_one()
    return newest


def has_received(connection: Connection) -> bool:
    """Say whether anybody ever came or anything was ever received; False, too, of a database without tables yet."""
    if not inspect(connection).has_table(series.name):
        return False
    return any(connection.execute(select(table.c.id).limit(1)).first() for table in (associations, series))


def record_instance(connection: Connection, header: InstanceHeader, file: StoredFile, arrival: Arrival) -> Recording:
    """Add an instance to the index, or say that its SOP Instance UID is there already.

    The first instance of a series makes its row. A new instance sets a series that was judged already back to
    `receiving`, so that it is judged again; one that names another patient or study refuses the series for good, and so
    does one that comes again under another PatientID, as after a correction at its source.
    Two associations that bring the same UID at once are kept apart by the unique constraint: one is NEW.

    Parameters
    ----------
    connection : Connection
        Of `Database.write`; nothing is known to be durable before it commits.
    """
    if count_own_output(connection, header.sop_instance_uid):
        return Recording(Recorded.OWN_OUTPUT)
    known = _judge_known(connection, header, file, arrival)
    if known is not None:
        return known
    patient_id = find_or_add_patient(connection, header.patient)
    study_id = _fetch_or_insert(connection, studies, {"study_uid": header.study.study_uid}, vars(header.study))
    with connection.begin_nested() as savepoint:
        series_id = _fetch_or_insert_series(connection, header, arrival, (patient_id, study_id))
        added = connection.execute(
            insert_new(connection.dialect.name, instances)
            .values(make_instance_row(header, file, arrival, series_id))
            .on_conflict_do_nothing(index_elements=["sop_instance_uid"])
            .returning(instances.c.id)
        ).first()
        if added is None:
            savepoint.rollback()
    if added is None:  # another association committed this UID since `_judge_known` looked
        known = _judge_known(connection, header, file, arrival)
        assert known is not None  # noqa: S101  the insert met the row
        return known
    row = connection.execute(select(series).where(series.c.id == series_id).with_for_update(key_share=True)).one()
    touch_series(connection, row, (patient_id, study_id), [(header.series, arrival)])
    return Recording(Recorded.NEW, file.file_name)


def make_instance_row(header: InstanceHeader, file: StoredFile, arrival: Arrival, series_id: int) -> dict[str, Any]:
    """Return the row of an instance, by column."""
    return {
        **vars(file),
        "sop_instance_uid": header.sop_instance_uid,
        "sop_class_uid": header.sop_class_uid,
        "series_id": series_id,
        "association_id": arrival.association_id,
        "received_at": arrival.received_at,
    }


def touch_series(
    connection: Connection, row: Row[Any], owners: tuple[int, int], joined: Sequence[tuple[SeriesHeader, Arrival]]
) -> None:
    """Let a series know of new instances: it is judged again, or refused when they are not of its kind.

    One whose instances were deleted begins anew: it may have been corrected at its source since.
    """
    state, reason = row.state, row.reason
    patient_id, study_id = owners
    if row.state == DELETED:
        state, reason = "receiving", ""
    elif row.patient_id != patient_id:
        state, reason = "refused", MIXED_PATIENTS
    elif row.study_id != study_id:
        state, reason = "refused", MIXED_STUDIES
    elif row.state != "receiving" and row.reason not in MIXED_REASONS:
        state, reason = "receiving", ""
    counts = (row.expected_instances, *(header.expected_instances for header, _ in joined))
    summaries = [header.summary for header, _ in joined]
    values = {
        "touched_id": row.id,
        "patient_id": patient_id if row.state == DELETED else row.patient_id,
        "study_id": study_id if row.state == DELETED else row.study_id,
        "last_received_at": max(row.last_received_at, *(arrival.received_at for _, arrival in joined)),
        "expected_instances": max((count for count in counts if count is not None), default=None),
        "summary": reduce(merge_summaries, summaries if row.state == DELETED else [row.summary, *summaries]),
        "state": state,
        "reason": reason,
    }
    connection.execute(_TOUCH, values)
    if reason in MIXED_REASONS and reason != row.reason:
        cancel_series(connection, row.id, reason)


def merge_summaries(one: Mapping[str, Any], other: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what two instances say of their series, the same whichever came first.

    Where they differ in ImageType, `ImageTypes` holds each, its values joined by backslashes: a series of magnitude and
    phase is no phase series. Of other lists of words what both say is kept, of anything else the least that is said, as
    the first of several echoes.
    """
    if one == other:
        return one
    merged = {keyword: _merge(one.get(keyword), other.get(keyword)) for keyword in {**one, **other}}
    kinds = {*list_image_types(one), *list_image_types(other)}
    if len(kinds) > 1:
        merged.pop("ImageType", None)
        merged["ImageTypes"] = sorted(kinds)[:IMAGE_TYPES_AT_MOST]
    return {keyword: value for keyword, value in merged.items() if value != []}


def list_image_types(summary: Mapping[str, Any]) -> list[str]:
    """Return the kinds of images that a summary tells of, each as ImageType has it; empty for what does not say."""
    kinds: list[str] = summary.get("ImageTypes") or ["\\".join(summary.get("ImageType", ()))]
    return kinds


def _merge(one: Any, other: Any) -> Any:
    if one == other:
        return one
    if _is_of_words(one) or _is_of_words(other):
        return sorted(set(one or ()) & set(other or ()))
    return min(value for value in (one, other) if value is not None)


def _is_of_words(value: Any) -> bool:
    return isinstance(value, list) and isinstance(value[0], str)


def find_or_add_patient(connection: Connection, patient: PatientIdentity) -> int:
    """Return the id of the row of this identity, adding it where there is none."""
    return _fetch_or_insert(connection, patients, vars(patient), vars(patient))


def insert_new(dialect: str, table: Table) -> sqlite.Insert | postgresql.Insert:
    """Return an INSERT that can leave a row which is there already alone."""
    return sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)


def count_own_output(connection: Connection, sop_instance_uid: str) -> bool:
    """Say whether the node itself made this instance, and count it there: a result that was routed back."""
    is_ours = outputs.c.sop_instance_uid == sop_instance_uid
    return connection.execute(update(outputs).where(is_ours).values(returned=outputs.c.returned + 1)).rowcount > 0


def is_indexed(connection: Connection, file_name: str) -> bool:
    """Say whether an instance row names this file."""
    return connection.execute(select(instances.c.id).where(instances.c.file_name == file_name)).first() is not None


def is_conflict(connection: Connection, file_name: str) -> bool:
    """Say whether a conflict row names this file."""
    return connection.execute(select(conflicts.c.id).where(conflicts.c.file_name == file_name)).first() is not None


def _judge_known(
    connection: Connection, header: InstanceHeader, file: StoredFile, arrival: Arrival
) -> Recording | None:
    """Compare with the row of this UID, recording a conflict; None where there is none."""
    query = select(instances.c.sha256, instances.c.transfer_syntax_uid, instances.c.file_name)
    row = connection.execute(query.where(instances.c.sop_instance_uid == header.sop_instance_uid)).first()
    if row is None:
        return None
    if (row.sha256, row.transfer_syntax_uid) == (file.sha256, file.transfer_syntax_uid):
        return Recording(Recorded.IDENTICAL, row.file_name)
    _refuse_other_patient(connection, header)
    added = connection.execute(
        insert_new(connection.dialect.name, conflicts)
        .values(
            sop_instance_uid=header.sop_instance_uid,
            association_id=arrival.association_id,
            file_name=file.file_name,
            size_bytes=file.size_bytes,
            sha256=file.sha256,
            received_at=arrival.received_at,
        )
        .on_conflict_do_nothing(index_elements=["sop_instance_uid", "sha256"])
        .returning(conflicts.c.id)
    ).first()
    return Recording(Recorded.KNOWN_CONFLICT if added is None else Recorded.CONFLICT, row.file_name)


def _refuse_other_patient(connection: Connection, header: InstanceHeader) -> None:
    """Refuse the series of an instance that is there under another PatientID."""
    of_instance = select(instances.c.series_id).where(instances.c.sop_instance_uid == header.sop_instance_uid)
    same = select(patients.c.id).where(patients.c.patient_id == header.patient.patient_id)
    is_other = series.c.id.in_(of_instance) & series.c.patient_id.not_in(same) & series.c.reason.not_in(MIXED_REASONS)
    refused = update(series).where(is_other).values(state="refused", reason=RENAMED_PATIENT).returning(series.c.id)
    for series_id in connection.execute(refused).scalars():
        cancel_series(connection, series_id, RENAMED_PATIENT)


def _fetch_or_insert(connection: Connection, table: Table, key: Mapping[str, Any], values: Mapping[str, Any]) -> int:
    """Return the id of the row with this unique key, adding it where there is none."""
    query = select(table.c.id).where(*(table.c[name] == value for name, value in key.items()))
    row_id: int | None = connection.execute(query).scalar_one_or_none()
    if row_id is not None:
        return row_id
    statement = (
        insert_new(connection.dialect.name, table).values(**values).on_conflict_do_nothing(index_elements=list(key))
    )
    row_id = connection.execute(statement.returning(table.c.id)).scalar_one_or_none()
    return int(connection.execute(query).scalar_one()) if row_id is None else row_id


def _fetch_or_insert_series(
    connection: Connection, header: InstanceHeader, arrival: Arrival, owners: tuple[int, int]
) -> int:
    patient_id, study_id = owners
    values = {
        "series_uid": header.series.series_uid,
        "study_id": study_id,
        "patient_id": patient_id,
        "state": "receiving",
        "modality": header.series.modality,
        "description": header.series.description,
        "frame_of_reference_uid": header.series.frame_of_reference_uid,
        "expected_instances": header.series.expected_instances,
        "summary": dict(header.series.summary),
        "calling_ae": arrival.calling_ae,
        "first_received_at": arrival.received_at,
        "last_received_at": arrival.received_at,
    }
    return _fetch_or_insert(connection, series, {"series_uid": header.series.series_uid}, values)


def _only_key(key: Any) -> int:
    return int(key[0])
