"""A database file gives back what deleted rows leave; PostgreSQL is left to itself."""

from __future__ import annotations

from sqlalchemy import delete, insert

from dicomnode.database.engine import VACUUM_PAGES, Database
from dicomnode.database.schema import studies

PAGE_BYTES = 4096


def test_a_database_gives_back_what_deleted_rows_leave(database: Database) -> None:
    rows = [{"study_uid": f"1.2.{n}", "study_date": "", "study_time": "", "accession_number": ""} for n in range(2000)]
    wide = [{**row, "accession_number": "x" * 4 * PAGE_BYTES} for row in rows]
    with database.write() as connection:
        connection.execute(insert(studies), wide)
        connection.execute(delete(studies).where(studies.c.id > 10))

    before = size_bytes(database)
    database.keep_up()

    with database.read() as connection:
        assert connection.execute(studies.select().order_by(studies.c.id)).all()[9].study_uid == "1.2.9"
    if database.engine.dialect.name == "sqlite":
        given_back = (before - size_bytes(database)) // PAGE_BYTES
        assert VACUUM_PAGES <= given_back < 1.01 * VACUUM_PAGES  # and what pointed to them
        # It pays no more: what is left is filled again.
        with database.write() as connection:
            connection.execute(
                insert(studies), [{**row, "study_uid": f"1.3.{row['study_uid']}"} for row in wide[:1400]]
            )
        before = size_bytes(database)
        database.keep_up()
        assert size_bytes(database) == before


def size_bytes(database: Database) -> int:
    if database.engine.dialect.name != "sqlite":
        return 0
    with database.read() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    return int(pages) * PAGE_BYTES


def test_a_connection_opens_while_another_writes(database: Database) -> None:
    with database.write() as connection:
        connection.execute(
            insert(studies), {"study_uid": "1", "study_date": "", "study_time": "", "accession_number": ""}
        )
        with database.read() as other:
            assert other.execute(studies.select()).all() == []
