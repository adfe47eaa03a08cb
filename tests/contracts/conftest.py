"""One database of each kind, empty: a contract holds on both.

Flow: tests/conftest > [conftest] > contracts
Never: a fake; PostgreSQL is the real one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dicomnode.database.engine import Database, open_database
from dicomnode.database.migrate import migrate
from tests.databases import empty_postgresql, make_sqlite
from tests.postgresql import PostgreSQL


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """Run one PostgreSQL for the session."""
    with PostgreSQL() as server:
        yield server


@pytest.fixture(scope="session")
def postgresql_url(postgresql: PostgreSQL) -> str:
    """Give the URL of the PostgreSQL database that the tests share, one after the other."""
    url = postgresql.make_database()
    migrate(url)
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Give the URL of a database with this software's tables, empty."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'dicomnode.sqlite'}"
        make_sqlite(url)
    else:
        url = request.getfixturevalue("postgresql_url")
        empty_postgresql(url)
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """Give an empty database with this software's tables."""
    opened = open_database(database_url)
    yield opened
    opened.close()
