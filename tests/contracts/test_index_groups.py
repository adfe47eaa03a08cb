"""Instances recorded as a group are recorded as if one by one; and one row that is no row spoils no other."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Connection, select
from sqlalchemy.exc import StatementError

from dicomnode.database.engine import Database
from dicomnode.database.index import (
    Recorded,
    Recording,
    open_association,
    record_instance,
)
from dicomnode.database.index_groups import Received, record_instances
from dicomnode.database.schema import conflicts, instances, patients, series, studies
from dicomnode.database.series import set_series_state
from tests.receiving import PATIENT, ROOT, make_arrival, make_file, make_header

OTHER_PATIENT = replace(PATIENT, patient_id="P-18")
SUMMARIES: Sequence[dict[str, Any]] = (
    {"ImageType": ["ORIGINAL", "PRIMARY", "M"], "EchoTime": 3.0},
    {"ImageType": ["ORIGINAL", "PRIMARY", "P"], "EchoTime": 9.0, "Rows": 256},
    {"PixelSpacing": [1.0, 0.5], "Rows": 192},
)


class UndoneError(Exception):
    """Rolls a transaction back."""


@pytest.fixture
def association_id(database: Database) -> int:
    with database.write() as connection:
        return open_association(connection, node="a" * 32, calling_ae="SCANNER", address="10.1.2.8", now=90.0)


def draw(seed: int, association_id: int, numbers: range, *, is_new: bool) -> list[Received]:
    """Return instances in two series of two patients and studies; if not all new, some twice and with other content."""
    choose = random.Random(seed)  # noqa: S311  a case, not a secret
    return [
        Received(
            make_header(
                number if is_new else choose.choice(numbers[:6]),
                series=f"{ROOT}.{choose.choice((3, 4))}",
                study=f"{ROOT}.{choose.choice((2, 2, 2, 22))}",
                patient=choose.choice((PATIENT, PATIENT, PATIENT, OTHER_PATIENT)),
                expected=choose.choice((None, 5, 9)),
                summary=choose.choice(SUMMARIES),
            ),
            make_file(choose.choice("ab")),
            make_arrival(association_id, 100.0 + choose.randrange(20)),
        )
        for number in numbers
    ]


def one_by_one(connection: Connection, received: Sequence[Received]) -> list[Recording]:
    return [record_instance(connection, one.header, one.file, one.arrival) for one in received]


def dump(connection: Connection) -> list[list[Any]]:
    """Return the rows without the numbers that databases give."""
    owner = series.join(patients, series.c.patient_id == patients.c.id).join(studies, series.c.study_id == studies.c.id)
    tables = [
        select(series.c.series_uid, series.c.state, series.c.reason, series.c.expected_instances, series.c.summary,
               series.c.first_received_at, series.c.last_received_at, patients.c.patient_id, studies.c.study_uid)
        .select_from(owner).order_by(series.c.series_uid),
        select(instances.c.sop_instance_uid, instances.c.file_name, instances.c.sha256, series.c.series_uid)
        .select_from(instances.join(series)).order_by(instances.c.sop_instance_uid),
        select(conflicts.c.sop_instance_uid, conflicts.c.file_name).order_by(conflicts.c.file_name),
    ]  # fmt: skip
    return [[tuple(row) for row in connection.execute(query)] for query in tables]


def try_out(database: Database, record: Callable[[Connection, Sequence[Received]], Any], groups: Any) -> Any:
    """Return what recording the groups gives and leaves, and undo it."""
    found: list[Any] = []
    with suppress(UndoneError), database.write() as connection:
        for group in groups:
            found.append(record(connection, group))
            for series_id in connection.execute(select(series.c.id).where(series.c.state == "receiving")).scalars():
                set_series_state(connection, series_id, "complete", "quiet")
        found.append(dump(connection))
        raise UndoneError
    return found


@pytest.mark.parametrize("seed", range(12))
def test_a_group_is_recorded_as_if_one_by_one(database: Database, association_id: int, seed: int) -> None:
    first, joining = range(8), range(100, 116)  # the latter into series that are there
    groups = [
        draw(seed, association_id, first, is_new=True),
        draw(seed + 1000, association_id, first, is_new=False),
        draw(seed + 2000, association_id, joining, is_new=True),
    ]
    wanted = try_out(database, one_by_one, groups)
    assert try_out(database, record_instances, groups) == wanted
    kinds = [{recording.kind for recording in recordings} for recordings in wanted[:3]]
    assert kinds[0] == kinds[2] == {Recorded.NEW}
    assert len(kinds[1]) > 1


def test_a_row_the_database_does_not_take_stands_alone(database: Database, association_id: int) -> None:
    good = [Received(make_header(n), make_file(str(n)), make_arrival(association_id)) for n in (1, 2)]
    bad = replace(good[0], header=replace(make_header(3, series=f"{ROOT}.5"), sop_class_uid=None))  # type: ignore[arg-type]  # as a bug of ours would
    with database.write() as connection:
        first, failed, second = record_instances(connection, [good[0], bad, good[1]])
    assert isinstance(failed, StatementError)
    assert [first, second] == [Recording(Recorded.NEW, one.file.file_name) for one in good]
    with database.read() as connection:
        assert len(connection.execute(select(instances)).all()) == 2
