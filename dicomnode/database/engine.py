"""Opens the database and hands out transactions: SQLite by default, PostgreSQL by URL.

Flow: receive|pairing|jobs|send > index|pairs|jobs|outbox > [engine] > SQLite or PostgreSQL
Never: a write in a deferred SQLite transaction (it fails with "database is locked" under load);
SQL about the node's own work (that stands in the modules named after their table).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DataError,
    IntegrityError,
    NotSupportedError,
    ProgrammingError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import ConnectionPoolEntry

from dicomnode.errors import ConfigurationError, DatabaseUnavailableError

BUSY_TIMEOUT_S = 30.0
# Seconds until a PostgreSQL server that is gone is missed by who connects, sends or waits for an answer: 30 or less;
# libpq leaves that to the kernel, which takes up to hours.
POSTGRESQL_WAITS = {
    "connect_timeout": 10,
    "tcp_user_timeout": 30_000,  # ms
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
}
VACUUM_PAGES = 4096  # of 4 KiB: given back in one transaction, which others wait for
VACUUM_SHARE = 0.25  # of a database file that may be free: most of it is filled again
# What a database says of a row or a statement, and not of itself (PEP 249).
_OF_A_STATEMENT = (DataError, IntegrityError, NotSupportedError, ProgrammingError)
# What SQLite says of its file, and what to do about it.
SQLITE_FIXES = {
    "unable to open database file": "its folder must be there, and both must be the node's user's",
    "attempt to write a readonly database": "it must be the node's user's, who runs this",
    "file is not a database": "restore it from a backup",
    "database disk image is malformed": "restore it from a backup",
}


@dataclass(frozen=True)
class Database:
    """The one way to the database; cheap to copy, safe to share between threads."""

    engine: Engine

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a transaction that may write; it commits durably on leaving, and rolls back on an exception.

        Raises
        ------
        DatabaseUnavailableError
            If the database cannot be reached or written, or stays locked for 30 s; nothing was written.
        """
        with self._translated(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a consistent view that must not write, and never waits for a writer.

        Raises
        ------
        DatabaseUnavailableError
            If the database cannot be reached.
        """
        with self._translated(), self.engine.connect().execution_options(dicomnode_read_only=True) as connection:
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """Open a view that stays that of one moment, however long it is read; raises as `read` does."""
        options: dict[str, Any] = {"dicomnode_read_only": True}
        if self.engine.dialect.name == "postgresql":
            options["isolation_level"] = "REPEATABLE READ"
        with self._translated(), self.engine.connect().execution_options(**options) as connection:
            yield connection

    def keep_up(self) -> None:
        """Give back to the disk, a little at a time, what deleted rows leave; PostgreSQL does so by itself.

        Raises
        ------
        DatabaseUnavailableError
            If the database cannot be reached or stays locked.
        """
        if self.engine.dialect.name != "sqlite":
            return
        with self.write() as connection:
            free, pages = (
                connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in ("freelist_count", "page_count")
            )
            connection.exec_driver_sql("PRAGMA optimize")
        if free <= VACUUM_PAGES or free <= pages * VACUUM_SHARE:
            return
        raw = self.engine.raw_connection()
        try:
            # Each step of this statement frees one page, and only a script is stepped to its end.
            raw.cursor().executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")
        except sqlite3.OperationalError as error:
            raise DatabaseUnavailableError(self.explain(error)) from error
        finally:
            raw.close()

    def close(self) -> None:
        """Close the pooled connections."""
        self.engine.dispose()

    def explain(self, error: Exception) -> str:
        """Return why the database can do nothing now, by SQLAlchemy's word or the driver's, and what to do."""
        if isinstance(error, PoolTimeoutError):
            return "database: every connection is in use"
        said = " ".join(str(getattr(error, "orig", error)).split())
        fix = SQLITE_FIXES.get(said)
        return f"database: {said}: {self.engine.url.database}; {fix}" if fix else f"database: {said}"

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            if not is_unavailable(error):
                raise
            raise DatabaseUnavailableError(self.explain(error)) from error


def is_unavailable(error: SQLAlchemyError) -> bool:
    """Say whether it is the database that cannot do anything now: away, full, locked, only to be read, or damaged."""
    is_of_database = isinstance(error, DatabaseError) and not isinstance(error, _OF_A_STATEMENT)
    return is_of_database or isinstance(error, PoolTimeoutError)


def open_database(url: str) -> Database:
    """Open the database at an SQLAlchemy URL; the schema is `migrate`'s business.

    Raises
    ------
    ConfigurationError
        If the URL cannot be read, or the driver it needs is not installed.
    """
    try:
        if make_url(url).get_backend_name() == "sqlite":
            engine = create_engine(url, hide_parameters=True, connect_args={"timeout": BUSY_TIMEOUT_S})
            event.listen(engine, "connect", _configure_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
        else:
            waits = {name: value for name, value in POSTGRESQL_WAITS.items() if name not in make_url(url).query}
            engine = create_engine(url, hide_parameters=True, pool_pre_ping=True, connect_args=waits)
            event.listen(engine, "connect", _configure_postgresql)
    except (ArgumentError, ValueError) as error:  # the URL may hold a password, and they may quote it
        raise ConfigurationError(
            "database.url: cannot be read; write postgresql+psycopg://user@host:5432/name, special characters as %40"
        ) from error
    except ImportError as error:
        raise ConfigurationError(
            f"database.url: {error.name} is not installed; pip install 'dicomnode-fusion[postgres]'"
        ) from error
    return Database(engine)


def _configure_sqlite(connection: Any, _entry: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # the driver must not open transactions of its own
    cursor = connection.cursor()
    if cursor.execute("PRAGMA page_count").fetchone()[0] == 0:  # else it does nothing but wait for whoever writes
        cursor.execute("PRAGMA auto_vacuum = INCREMENTAL")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")  # a commit survives power loss
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
    cursor.close()


def _configure_postgresql(connection: Any, _entry: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    cursor.execute(f"SET lock_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
    # A commit survives power loss; a server may be set to promise more than that.
    cursor.execute(
        "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
    )
    cursor.close()
    connection.commit()


def _begin_sqlite(connection: Connection) -> None:
    is_read_only = connection.get_execution_options().get("dicomnode_read_only", False)
    connection.exec_driver_sql("BEGIN" if is_read_only else "BEGIN IMMEDIATE")
