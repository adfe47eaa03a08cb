"""Whether a UID is known: asked over one connection, and right from the moment of a commit."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, event, insert
from sqlalchemy.exc import OperationalError

from dicomnode.database.engine import Database
from dicomnode.database.index import open_association, record_instance
from dicomnode.database.known import KnownInstances
from dicomnode.database.schema import jobs, outputs, pairs
from dicomnode.errors import DatabaseUnavailableError
from tests.receiving import ROOT, make_arrival, make_file, make_header

UID = f"{ROOT}.3.1"


def record(database: Database, number: int) -> None:
    with database.write() as connection:
        opened = open_association(connection, node="a" * 32, calling_ae="SCANNER", address="10.1.2.8", now=90.0)
        record_instance(connection, make_header(number), make_file(str(number)), make_arrival(opened))


def test_an_instance_is_known_once_its_row_is_committed(database: Database) -> None:
    known = KnownInstances(database)
    assert not known.is_known(UID)
    record(database, 1)
    assert known.is_known(UID)
    assert not known.is_known(f"{ROOT}.3.2")
    assert not known.is_known("1' OR '1'='1")
    record(database, 2)
    assert known.is_known(f"{ROOT}.3.2")
    known.close()


def test_an_output_of_ours_is_known(database: Database) -> None:
    record(database, 1)
    with database.write() as connection:
        pair = {"input_digest": "d", "state": "ready", "explanation": {}, "created_at": 1.0}
        connection.execute(insert(pairs).values(id=1, fixed_series_id=1, moving_series_id=1, **pair))
        connection.execute(insert(jobs).values(id=1, pair_id=1, state="done", not_before=0.0, created_at=1.0))
        values = {"kind": "pt", "sop_class_uid": "1.2", "series_uid": "1.2", "transfer_syntax_uid": "1.2", "path": "x"}
        connection.execute(
            insert(outputs).values(job_id=1, sop_instance_uid="1.2.9", size_bytes=1, sha256="s", **values)
        )
    known = KnownInstances(database)
    assert known.is_known("1.2.9")
    known.close()


def test_a_database_that_is_away_is_named_and_asked_again(database: Database) -> None:
    def refuse(_connection: Connection) -> None:
        raise OperationalError("SELECT 1", {}, Exception("the connection is gone"))

    record(database, 1)
    known = KnownInstances(database)
    event.listen(database.engine, "engine_connect", refuse)
    with pytest.raises(DatabaseUnavailableError, match="the connection is gone"):
        known.is_known(UID)
    event.remove(database.engine, "engine_connect", refuse)
    assert known.is_known(UID)
    known.close()
