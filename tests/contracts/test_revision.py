"""Whether a database has this software's tables and takes writes: the same words for both kinds.

Flow: database/revision, database/engine > [test_revision]
Never: a migration's content (`test_migrate`).
"""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import make_url, text

from dicomnode.database.engine import Database, open_database
from dicomnode.database.migrate import find_latest_revision
from dicomnode.database.revision import check_revision, check_writable
from dicomnode.errors import ConfigurationError, DatabaseUnavailableError, UsageError
from tests.postgresql import PostgreSQL


def test_the_newest_revision_is_that_of_the_migrations(database: Database) -> None:
    with database.read() as connection:
        assert check_revision(connection) == find_latest_revision()


def test_another_revision_is_named_with_the_one_that_is_needed(database: Database) -> None:
    newest = find_latest_revision()
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
        with pytest.raises(UsageError, match=f"at revision 0001, {newest} is needed; start the node once"):
            check_revision(connection)
        connection.rollback()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_database_without_tables_is_no_traceback(tmp_path: Path, postgresql: PostgreSQL, kind: str) -> None:
    url = postgresql.make_database() if kind == "postgresql" else f"sqlite:///{tmp_path / 'empty.sqlite'}"
    database = open_database(url)
    with database.read() as connection, pytest.raises(UsageError, match="at revision none"):
        check_revision(connection)
    database.close()


def test_a_database_that_takes_no_writes_is_said_to_be_unavailable(database_url: str) -> None:
    url = make_url(database_url)
    if url.get_backend_name() == "sqlite":
        only_read = url.set(database=f"file:{url.database}").update_query_dict({"mode": "ro", "uri": "true"})
    else:
        only_read = url.update_query_dict({"options": "-c default_transaction_read_only=on"})
    database = open_database(only_read.render_as_string(hide_password=False))
    with (
        pytest.raises(DatabaseUnavailableError, match=r"readonly|read-only"),
        database.write() as connection,
    ):
        check_writable(connection)
    database.close()


def test_a_damaged_file_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "dicomnode.sqlite"
    path.write_bytes(b"no database" * 1000)
    database = open_database(f"sqlite:///{path}")
    with pytest.raises(DatabaseUnavailableError) as caught, database.read():
        pass
    assert str(caught.value) == f"database: file is not a database: {path}; restore it from a backup"
    database.close()


@pytest.mark.parametrize(
    "url", ["nonsense", "postgresql+nothing://u:s3cret@h/d", "postgresql+psycopg://u:s3cret@h:port/d"]
)
def test_a_url_that_cannot_be_read_is_not_quoted(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"database\.url: cannot be read") as caught:
        open_database(url)
    assert "s3cret" not in str(caught.value)


def test_a_driver_that_is_not_installed_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"MySQLdb is not installed"):
        open_database("mysql://h/d")
