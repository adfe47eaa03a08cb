"""Brings a database to the schema of this software.

Flow: app|cli > [migrate] > migrations
Never: an ini file or the current folder; the revisions are part of the package.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection

from dicomnode.database.engine import open_database
from dicomnode.errors import ConfigurationError

MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK_KEY = 4242001  # any number, the same in every dicomnode


def migrate(database_url: str, revision: str = "head") -> None:
    """Create the tables, or bring them to this software's version; safe when several nodes start at once.

    Parameters
    ----------
    database_url : str
    revision : str
        An earlier one, for rows of that time.

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
            command.upgrade(make_config(connection), revision)
    except CommandError as error:
        raise ConfigurationError(f"database: {error}; is it of a later version of dicomnode?") from error
    finally:
        database.close()


def find_latest_revision() -> str:
    """Return the revision that this software works with."""
    return str(ScriptDirectory.from_config(_make_config()).get_current_head())


def make_config(connection: Connection) -> Config:
    """Return the Alembic configuration that works on a connection with an open transaction."""
    config = _make_config()
    config.attributes["connection"] = connection
    return config


def _make_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _wait_for_others(connection: Connection) -> None:
    """Let one node at a time migrate: SQLite's BEGIN IMMEDIATE does so already."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK_KEY})")
