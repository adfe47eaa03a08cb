"""The migrations make exactly the tables of schema.py, on both databases, for several nodes at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from dicomnode.database.engine import Database, open_database
from dicomnode.database.migrate import make_config, migrate
from dicomnode.database.schema import metadata
from dicomnode.errors import ConfigurationError
from tests.postgresql import PostgreSQL

NODES = 4


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Give the URL of an empty database without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'dicomnode.sqlite'}"
    server: PostgreSQL = request.getfixturevalue("postgresql")
    return server.make_database()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    migrate(database_url)
    opened = open_database(database_url)
    yield opened
    opened.close()


def test_migrations_make_the_schema(database: Database) -> None:
    with database.write() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "target_metadata": metadata})
        assert compare_metadata(context, metadata) == []


def test_a_second_migration_changes_nothing(database: Database, database_url: str) -> None:
    with database.write() as connection:
        connection.execute(
            text("INSERT INTO studies (study_uid, study_date, study_time, accession_number) VALUES ('1.2', '', '', '')")
        )
    migrate(database_url)
    with database.read() as connection:
        assert connection.execute(text("SELECT study_uid FROM studies")).scalars().all() == ["1.2"]


def test_the_way_back_leaves_nothing(database: Database) -> None:
    with database.write() as connection:
        command.downgrade(make_config(connection), "base")
        assert inspect(connection).get_table_names() == ["alembic_version"]


def test_several_nodes_migrate_at_once(database_url: str, repository: Path) -> None:
    program = f"from dicomnode.database.migrate import migrate; migrate({database_url!r})"
    nodes = [subprocess.Popen([sys.executable, "-W", "error", "-c", program], cwd=repository) for _ in range(NODES)]
    assert [node.wait(60) for node in nodes] == [0] * NODES
    database = open_database(database_url)
    with database.read() as connection:
        assert set(inspect(connection).get_table_names()) == {*metadata.tables, "alembic_version"}
    database.close()


def test_a_later_version_of_the_database_is_refused(database: Database, database_url: str) -> None:
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigurationError, match="later version"):
        migrate(database_url)
    with database.read() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == "9999"
