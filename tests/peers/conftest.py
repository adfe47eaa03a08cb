"""What the tests against peers share."""

from __future__ import annotations

import logging
import tarfile
from collections.abc import Iterator
from logging.handlers import BufferingHandler
from pathlib import Path

import pytest

from dicomnode.database.engine import Database, open_database
from dicomnode.database.store import Store
from dicomnode.logs import LIBRARY_LEVELS, quiet_libraries
from dicomnode.settings import NodeSettings, Settings
from dicomnode.volumes.series import find_series
from tests.certificates import Authority
from tests.databases import make_sqlite


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def library_words() -> Iterator[list[logging.LogRecord]]:
    """Give what libraries say that a node would let into its log: of what a peer sends, they are to say nothing."""
    levels = {name: logging.getLogger(name).level for name in LIBRARY_LEVELS}
    handler = BufferingHandler(capacity=1000)
    quiet_libraries()
    logging.root.addHandler(handler)
    yield handler.buffer
    logging.root.removeHandler(handler)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """Give the database of the storage root `tmp_path`, empty."""
    Store(tmp_path).make_folders()
    url = Settings(node=NodeSettings(storage_root=tmp_path)).database_url
    make_sqlite(url)
    opened = open_database(url)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def real_series(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[Path]]]:
    """Give every series of the real MR archives, by archive."""
    series = {}
    for archive in sorted((shared_data / "mr_dicom").glob("*.tar.xz")):
        folder = tmp_path_factory.mktemp("archive")
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
        series[archive.name.removesuffix(".tar.xz")] = list(find_series(folder).values())
    return series
