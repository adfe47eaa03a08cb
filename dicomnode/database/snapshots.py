"""Every row as of one moment, in a form that either database takes back.

Flow: backup > [snapshots] > schema, migrate
Never: a file; a row changed on its way, save for claims that nobody holds any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from alembic.migration import MigrationContext
from sqlalchemy import Connection, MetaData, delete, func, inspect, select, update

from dicomnode.database.schema import commitments, jobs, marks, metadata

ROWS_AT_ONCE = 500
TABLES = tuple(table.name for table in metadata.sorted_tables)  # each after those that it refers to

Row = Mapping[str, Any]


def fetch_revision(connection: Connection) -> str | None:
    """Return the revision of the schema, None where there is none yet."""
    return MigrationContext.configure(connection).get_current_revision()


def fetch_rows(connection: Connection, name: str) -> Iterator[Row]:
    """Return every row of a table, by id, without holding them all."""
    table = metadata.tables[name]
    found = connection.execution_options(yield_per=ROWS_AT_ONCE).execute(select(table).order_by(*table.primary_key))
    return (dict(row) for row in found.mappings())


def is_empty(connection: Connection) -> bool:
    """Say whether a database holds no row of ours."""
    there = set(inspect(connection).get_table_names()) & set(TABLES)
    return not any(connection.execute(select(metadata.tables[name]).limit(1)).first() for name in sorted(there))


def insert_rows(connection: Connection, name: str, rows: Iterable[Row]) -> int:
    """Insert rows into a table as the database has it, which may be of an earlier schema; return how many."""
    reflected = MetaData()
    reflected.reflect(connection, only=[name])
    table, count, left = reflected.tables[name], 0, iter(rows)
    while some := list(islice(left, ROWS_AT_ONCE)):
        connection.execute(table.insert(), some)
        count += len(some)
    if count and connection.dialect.name == "postgresql" and "id" in table.c:
        last = select(
            func.setval(func.pg_get_serial_sequence(name, "id"), select(func.max(table.c.id)).scalar_subquery())
        )
        connection.execute(last)
    return count


def release_claims(connection: Connection) -> None:
    """Let go of everything that a process held when the rows were read: it is done again, by whoever comes first."""
    running = update(jobs).where(jobs.c.state == "running")
    freed = {"lease_until": None, "token": jobs.c.token + 1, "attempts": jobs.c.attempts - 1, "stage": "", "percent": 0}
    connection.execute(running.values(state="waiting", **freed))
    for table in metadata.sorted_tables:
        if "lease_until" in table.c:
            held = update(table).where(table.c.lease_until.is_not(None))
            connection.execute(held.values(lease_until=None, token=table.c.token + 1))
    # What was to be asked may have been asked since: a lease that is over makes another Transaction UID take its place.
    connection.execute(update(commitments).where(commitments.c.state == "owed").values(lease_until=0.0))
    connection.execute(delete(marks))  # clocks and turns of another time
