"""Whether a database has the tables of this software and takes writes, told without loading what makes them.

Flow: cli|backup > [revision] > migrations (their names)
Never: a change of a row; `migrate` makes it when a node starts.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from dicomnode.errors import UsageError

VERSIONS = Path(__file__).parent / "migrations" / "versions"
TABLE = "alembic_version"


def check_writable(connection: Connection) -> None:
    """Write nothing, as whoever writes would: a transaction that only reads is refused nowhere else.

    Raises
    ------
    DatabaseUnavailableError
        By the transaction, if the database takes no writes.
    """
    connection.execute(text(f"DELETE FROM {TABLE} WHERE 1 = 0"))  # noqa: S608 - a constant


def check_revision(connection: Connection) -> str:
    """Return the revision of a database that has the tables of this software.

    Raises
    ------
    UsageError
        If it is at another revision, or has none yet.
    """
    newest = max(path.name[1:5] for path in VERSIONS.glob("v[0-9]*.py"))
    is_there = inspect(connection).has_table(TABLE)
    found = connection.execute(text(f"SELECT version_num FROM {TABLE}")).scalar() if is_there else None  # noqa: S608 - a constant
    if found != newest:
        raise UsageError(
            f"the database is at revision {found or 'none'}, {newest} is needed; start the node once with this version "
            "of dicomnode, or take the version that the database is of"
        )
    return newest
