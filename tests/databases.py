"""Databases with this software's tables, copied or emptied instead of made anew: milliseconds for a test.

Flow: tests > [databases] > dicomnode.database.migrate
Never: a row of another test; a proof that migrations work (`tests/contracts/test_migrate.py` makes its own databases).
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from sqlalchemy import delete, make_url, text

from dicomnode.database.engine import open_database
from dicomnode.database.migrate import migrate
from dicomnode.database.schema import metadata

# Whoever a test has left connected would hold the rows, or write more.
CUT_OTHERS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
COUNT_FROM_ONE = "SELECT setval(oid, 1, false) FROM pg_class WHERE relkind = 'S'"


def make_sqlite(database_url: str) -> None:
    """Do what `migrate` does for an SQLite database; one that is not there yet becomes a copy."""
    path = Path(make_url(database_url).database or "")
    if path.exists():
        migrate(database_url)
    else:
        path.write_bytes(_read_empty_sqlite())


@cache
def _read_empty_sqlite() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "empty.sqlite"
        migrate(f"sqlite:///{path}")
        return path.read_bytes()


def empty_postgresql(database_url: str) -> None:
    """Take every row from a PostgreSQL database, as if its tables had just been made."""
    database = open_database(database_url)
    with database.write() as connection:
        connection.execute(text(CUT_OTHERS))
        for table in reversed(metadata.sorted_tables):  # for the rows of a test faster than TRUNCATE, which makes files
            connection.execute(delete(table))
        connection.execute(text(COUNT_FROM_ONE))
    database.close()
