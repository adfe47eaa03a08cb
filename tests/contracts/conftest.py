"""One database of each kind, empty and migrated: a contract holds on both.

Flow: tests/conftest > [conftest] > contracts
Never: a fake; PostgreSQL is the real one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dicomnode.database.engine import Database, open_database
from dicomnode.database.migrate import migrate
from tests.postgresql import PostgreSQL


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """Run one PostgreSQL for the session."""
    with PostgreSQL() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Give the URL of an empty database without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'dicomnode.sqlite'}"
    make_database: Callable[[], str] = request.getfixturevalue("postgresql").make_database
    return make_database()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """Give an empty database with this software's tables."""
    migrate(database_url)
    opened = open_database(database_url)
    yield opened
    opened.close()
