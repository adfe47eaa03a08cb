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


def test_what_was_asked_to_be_committed_before_promises_were_noted_counts_as_promised(database_url: str) -> None:
    opened = open_database(database_url)
    with opened.write() as connection:
        command.upgrade(make_config(connection), "0006")
        for statement in (
            "INSERT INTO patients VALUES (1, 'P', '', '', '', '')",
            "INSERT INTO studies VALUES (1, '1.2', '', '', '')",
            "INSERT INTO series (id, series_uid, study_id, patient_id, state, reason, modality, description, "
            "frame_of_reference_uid, completed_by, summary, calling_ae, first_received_at, last_received_at) "
            "VALUES (1, '1.3', 1, 1, 'unpaired', '', 'MR', '', '', '', '{}', 'A', 1, 1)",
            "INSERT INTO associations (id, node, calling_ae, address, opened_at) VALUES (1, 'n', 'A', '', 1)",
        ):
            connection.execute(text(statement))
        columns = "sop_instance_uid, sop_class_uid, transfer_syntax_uid, series_id, association_id, file_name"
        columns += ", size_bytes, sha256, received_at, commitment_requested_at"
        for uid, asked_at in (("1.4", "7.5"), ("1.5", "NULL")):
            values = f"'{uid}', '1', '1', 1, 1, '{uid}', 1, '', 1, {asked_at}"
            connection.execute(text(f"INSERT INTO instances ({columns}) VALUES ({values})"))  # noqa: S608  ours
    migrate(database_url)
    with opened.read() as connection:
        rows = connection.execute(text("SELECT sop_instance_uid, committed_at FROM instances")).all()
    opened.close()
    assert {row[0]: row[1] for row in rows} == {"1.4": 7.5, "1.5": None}


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
