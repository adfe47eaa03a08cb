"""Whatever keeps a database from answering is said in one way, on SQLite and PostgreSQL; what it refuses is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Connection, create_engine, event, insert
from sqlalchemy.exc import IntegrityError

from dicomnode.database import engine
from dicomnode.database.engine import Database, open_database
from dicomnode.database.known import KnownInstances
from dicomnode.database.schema import studies
from dicomnode.database.series import fetch_series_rows
from dicomnode.errors import DatabaseUnavailableError
from tests.databases import make_sqlite

STUDY = {"study_uid": "1.2", "study_date": "", "study_time": "", "accession_number": ""}
# A standby that has taken over, or is still to: it reads, and writes nothing.
READ_ONLY = {"sqlite": "PRAGMA query_only = ON", "postgresql": "SET TRANSACTION READ ONLY"}


def test_a_database_that_may_only_be_read_is_away(database: Database) -> None:
    def become_read_only(connection: Connection) -> None:
        connection.exec_driver_sql(READ_ONLY[connection.dialect.name])

    event.listen(database.engine, "begin", become_read_only)
    with pytest.raises(DatabaseUnavailableError, match=r"read-?only"), database.write() as connection:
        connection.execute(insert(studies), STUDY)


def test_a_database_that_stays_locked_is_away(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "BUSY_TIMEOUT_S", 0.2)
    holder, waiter = open_database(database_url), open_database(database_url)
    with holder.write() as held:
        held.execute(insert(studies), STUDY)
        with pytest.raises(DatabaseUnavailableError, match=r"database: .*lock"), waiter.write() as connection:
            connection.execute(insert(studies), STUDY)
    holder.close()
    waiter.close()


def test_a_commit_survives_power_loss_whatever_the_server_s_default_is(postgresql_url: str) -> None:
    found = []
    for database in (Database(create_engine(postgresql_url)), open_database(postgresql_url)):
        with database.read() as connection:
            found.append(connection.exec_driver_sql("SHOW synchronous_commit").scalar_one())
        database.close()
    assert found == ["off", "on"]


def test_a_server_that_is_gone_is_not_waited_for_as_long_as_libpq_would(postgresql_url: str) -> None:
    for url, connect_s in ((postgresql_url, "10"), (f"{postgresql_url}&connect_timeout=3", "3")):
        database = open_database(url)
        with database.read() as connection:
            found = connection.connection.driver_connection.info.get_parameters()  # type: ignore[union-attr]  # psycopg's
        database.close()
        assert (found["connect_timeout"], found["tcp_user_timeout"]) == (connect_s, "30000")
        assert int(found["keepalives_idle"]) + int(found["keepalives_interval"]) * int(found["keepalives_count"]) == 30


def test_a_database_whose_connections_are_all_in_use_is_away(database_url: str) -> None:
    database = Database(create_engine(database_url, pool_size=1, max_overflow=0, pool_timeout=0.01))
    with database.read():
        with pytest.raises(DatabaseUnavailableError, match="every connection is in use"), database.read():
            pass
        with pytest.raises(DatabaseUnavailableError, match="every connection is in use"):
            KnownInstances(database).is_known("1.2")
    database.close()


@pytest.mark.parametrize("kept_bytes", [0, 4096], ids=["no database", "damaged pages"])
def test_a_file_that_is_no_sqlite_database_is_named_with_what_to_do(tmp_path: Path, kept_bytes: int) -> None:
    path = tmp_path / "dicomnode.sqlite"
    make_sqlite(f"sqlite:///{path}")
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:kept_bytes] + b"A" * (size - kept_bytes))
    database = open_database(f"sqlite:///{path}")
    with (
        pytest.raises(DatabaseUnavailableError, match=r"^database: .*; restore it from a backup$"),
        database.read() as connection,
    ):
        fetch_series_rows(connection)
    database.close()


def test_a_row_that_is_refused_is_not_the_database_s_absence(database: Database) -> None:
    with pytest.raises(IntegrityError), database.write() as connection:
        connection.execute(insert(studies), [STUDY, STUDY])
