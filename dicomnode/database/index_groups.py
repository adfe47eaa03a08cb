"""Records many instances in one transaction, in fewer statements than one by one would take.

Flow: receive.intake > [index_groups] > index, schema
Never: another meaning of an instance than `index.record_instance` has: what is not plainly new goes through that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from sqlalchemy import Connection, Executable, Row, bindparam, select, union_all
from sqlalchemy.exc import StatementError

from dicomnode.database.engine import is_unavailable
from dicomnode.database.index import (
    Arrival,
    InstanceHeader,
    PatientIdentity,
    Recorded,
    Recording,
    StoredFile,
    insert_new,
    make_instance_row,
    record_instance,
    touch_series,
)
from dicomnode.database.schema import instances, outputs, patients, series, studies

# Made once: to build a statement takes longer than to run it.
_KNOWN = union_all(
    *(
        select(table.c.sop_instance_uid).where(table.c.sop_instance_uid.in_(bindparam("uids", expanding=True)))
        for table in (instances, outputs)
    )
)
_IDENTITY = tuple(field.name for field in fields(PatientIdentity))
_HOME = (
    select(series)
    .join(patients, series.c.patient_id == patients.c.id)
    .join(studies, series.c.study_id == studies.c.id)
    .where(
        series.c.series_uid == bindparam("home_series_uid"),
        studies.c.study_uid == bindparam("home_study_uid"),
        *(patients.c[name] == bindparam(name) for name in _IDENTITY),
    )
    .with_for_update(key_share=True, of=series)
)


@dataclass(frozen=True)
class Received:
    """An instance whose file is durable, for the index."""

    header: InstanceHeader
    file: StoredFile
    arrival: Arrival


@dataclass(frozen=True)
class _Home:
    """A series that is there, and instances of its very patient and study that are to join it."""

    row: Row[Any]
    received: list[Received]


def record_instances(connection: Connection, received: Sequence[Received]) -> list[Recording | StatementError]:
    """Do what `record_instance` does for each; a row that the database does not take stands alone.

    Returns
    -------
    list
        In the order of `received`: what became of it, or why the database did not take this one.
    """
    uids = Counter(one.header.sop_instance_uid for one in received)
    known = set(connection.execute(_KNOWN, {"uids": list(uids)}).scalars())
    new = [
        one for one in received if uids[one.header.sop_instance_uid] == 1 and one.header.sop_instance_uid not in known
    ]
    added = _add(connection, _find_homes(connection, new))
    return [
        Recording(Recorded.NEW, one.file.file_name)
        if one.header.sop_instance_uid in added
        else _record_apart(connection, one)
        for one in received
    ]


def _find_homes(connection: Connection, received: Sequence[Received]) -> list[_Home]:
    """Return the series that are there, without the instances whose series is not, or has other owners."""
    homes: dict[tuple[str, str, PatientIdentity], _Home | None] = {}
    for one in received:
        header = one.header
        key = (header.series.series_uid, header.study.study_uid, header.patient)
        if key not in homes:
            owners = {"home_series_uid": header.series.series_uid, "home_study_uid": header.study.study_uid}
            row = connection.execute(_HOME, {**owners, **vars(header.patient)}).first()
            homes[key] = None if row is None else _Home(row, [])
        if (home := homes[key]) is not None:
            home.received.append(one)
    return [home for home in homes.values() if home is not None]


def _add(connection: Connection, homes: Sequence[_Home]) -> set[str]:
    """Add instances to their series; return the UIDs of those that were, all but what others have added since."""
    rows = [
        make_instance_row(one.header, one.file, one.arrival, home.row.id) for home in homes for one in home.received
    ]
    if not rows:
        return set()
    statement = _make_insert(connection.dialect.name)
    try:
        # One row alone may fail with its transaction.
        with connection.begin_nested() if len(rows) > 1 else nullcontext():
            added = set(connection.execute(statement, rows).scalars())
    except StatementError as error:
        if len(rows) == 1 or is_unavailable(error):  # the database, not a row
            raise
        return set()
    for home in homes:
        joined = [one for one in home.received if one.header.sop_instance_uid in added]
        if joined:
            owners = home.row.patient_id, home.row.study_id
            touch_series(connection, home.row, owners, [(one.header.series, one.arrival) for one in joined])
    return added


@cache
def _make_insert(dialect: str) -> Executable:
    statement = insert_new(dialect, instances).on_conflict_do_nothing(index_elements=["sop_instance_uid"])
    return statement.returning(instances.c.sop_instance_uid)


def _record_apart(connection: Connection, one: Received) -> Recording | StatementError:
    try:
        with connection.begin_nested():
            return record_instance(connection, one.header, one.file, one.arrival)
    except StatementError as error:
        if is_unavailable(error):  # the database, not the row
            raise
        return error
