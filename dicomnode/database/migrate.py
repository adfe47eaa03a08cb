"""Brings a database to the schema of this software.

Flow: app|cli > [migrate] > migrations
Never: an ini file or the current folder; the revisions are part of the package.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection

from dicomnode.database.engine import open_database
from dicomnode.errors import ConfigurationError

MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK_KEY = 4242001  # any number, the same in every dicomnode


def migrate(database_url: str) -> None:
    """Create the tables, or bring them to this software's version; safe when several nodes start at once.

    Raises
    ------
    DatabaseUnavailableError
        If the database does not answer; nothing was changed.
    ConfigurationError
        If a later version of this software has been at the database; nothing was changed.
    """
    database = open_database(database_url)
    try:
        with database.write() as connection:
            _wait_for_others(connection)
            command.upgrade(make_config(connection), "head")
    except CommandError as error:
        raise ConfigurationError(f"database: {error}; is it of a later version of dicomnode?") from error
    finally:
        database.close()


def make_config(connection: Connection) -> Config:
    """Return the Alembic configuration that works on a connection with an open transaction."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _wait_for_others(connection: Connection) -> None:
    """Let one node at a time migrate: SQLite's BEGIN IMMEDIATE does so already."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK_KEY})")
